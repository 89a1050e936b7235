// What every page has: its data, arrays out of it, and the light or the dark look.
const page = { data: JSON.parse(document.getElementById('page-data')?.textContent ?? 'null') };

// A packed array (see `packed` in page.py) as {shape, values}; of "u8" and "u4" the codes stay with raw = true.
async function unpack(packed, raw = false) {
  const text = atob(packed.data), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  const inflated = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = packed.shape.reduce((a, b) => a * b, 1);
  if (packed.dtype === 'f16') return { shape: packed.shape, values: halves(inflated, count) };
  let codes = inflated;
  if (packed.dtype === 'u4') {
    codes = new Uint8Array(count);
    for (let i = 0; i < count; i++) codes[i] = i & 1 ? inflated[i >> 1] >> 4 : inflated[i >> 1] & 15;
  }
  if (raw) return { shape: packed.shape, values: codes };
  const zero = packed.zero ?? 0, scale = packed.scale, root = packed.dtype === 'u4';
  const values = Float32Array.from(codes, code => (root ? code * code / 15 : code - zero) * scale);
  return { shape: packed.shape, values };
}

// IEEE half precision, little-endian.
function halves(bytes, count) {
  const view = new DataView(bytes.buffer, bytes.byteOffset), values = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const bits = view.getUint16(2 * i, true), exponent = bits >> 10 & 31, fraction = bits & 1023;
    const size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    values[i] = bits & 0x8000 ? -size : size;
  }
  return values;
}

// An element: make('td', {className: 'number'}, 'text', child…). Text is only ever text.
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value; else element.setAttribute(key, value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

function draw(name, attributes = {}, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

{
  const button = document.getElementById('theme'), root = document.documentElement;
  const system = matchMedia('(prefers-color-scheme: dark)');
  const remembered = { get: () => { try { return localStorage.getItem('vitreous-theme'); } catch { return null; } },
    set: value => { try { localStorage.setItem('vitreous-theme', value); } catch { /* a browser that keeps nothing */ } } };
  const isDark = () => (root.dataset.theme ?? (system.matches ? 'dark' : 'light')) === 'dark';
  const show = () => { button.lastElementChild.textContent = isDark() ? 'Light' : 'Dark';
    button.setAttribute('aria-label', `Change to the ${isDark() ? 'light' : 'dark'} look`); };
  if (['light', 'dark'].includes(remembered.get())) root.dataset.theme = remembered.get();
  button.hidden = false;
  button.addEventListener('click', () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    remembered.set(root.dataset.theme);
    show();
  });
  system.addEventListener('change', show);
  show();
}
