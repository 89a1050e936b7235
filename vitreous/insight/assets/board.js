// Maps on pictures: colours, painting, and a board whose patches pointer and keys go over.
// Colours: of one lightness after the other, in OKLCH, so that they read in grey, too, and to every kind of sight.
function oklch(lightness, chroma, hue) {
  for (let c = chroma; ; c -= 0.004) {
    const a = Math.max(c, 0) * Math.cos(hue * Math.PI / 180), b = Math.max(c, 0) * Math.sin(hue * Math.PI / 180);
    const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3, m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
    const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
    const linear = [4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s, -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
      -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s];
    if (c > 0 && linear.some(x => x < -0.0005 || x > 1.0005)) continue;
    return linear.map(x => Math.round(255 * Math.min(1, Math.max(0, x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055))));
  }
}
// 256 colours, each an RGBA number as a canvas keeps it.
const ramp = colour => Uint32Array.from({ length: 256 }, (_, i) => {
  const [r, g, b, alpha = 1] = colour(i / 255);
  return (Math.round(alpha * 255) << 24 | b << 16 | g << 8 | r) >>> 0;
});
const warm = ramp(t => [...oklch(0.2 + 0.75 * t, 0.03 + 0.17 * Math.sin(Math.PI * Math.min(1, 0.12 + 0.8 * t)), 295 + 165 * t ** 0.9), 0.5 + 0.5 * Math.min(1, 2 * t)]);
const solid = warm.map(colour => (colour | 0xff000000) >>> 0);
const both = ramp(t => [...(t < 0.5 ? oklch(0.7, 0.18, 52) : oklch(0.5, 0.17, 250)), Math.abs(2 * t - 1) ** 0.7]);
const css = number => `rgba(${number & 255},${number >> 8 & 255},${number >> 16 & 255},${(number >>> 24) / 255})`;

function showLegend(host, low, high, colours = warm) {
  if (!host.children.length) host.append(make('span'), make('i'), make('span'));
  const stops = Array.from({ length: 17 }, (_, i) => css(colours[Math.round(i * 255 / 16)]));
  if (host.colours !== colours) {
    host.children[1].style.background = `linear-gradient(to right, ${stops}), ${colours === both ? '#c4c4c4' : '#5a5a5a'}`;
    host.colours = colours;
  }
  host.children[0].textContent = low;
  host.children[2].textContent = high;
}

// Paints (height, width) values on a canvas of so many pixels; `where` says for each pixel which value is meant.
function paint(canvas, values, height, width, span, { colours = warm, where = null } = {}) {
  if (canvas.width !== width || canvas.height !== height || !canvas.image) {
    canvas.width = width;
    canvas.height = height;
    canvas.context = canvas.getContext('2d');
    canvas.image = canvas.context.createImageData(width, height);
    canvas.words = new Uint32Array(canvas.image.data.buffer);
  }
  const words = canvas.words, factor = span > 0 ? (colours === both ? 127.5 : 255) / span : 0, middle = colours === both ? 127.5 : 0;
  for (let i = 0; i < words.length; i++) {
    const code = middle + values[where ? where[i] : i] * factor;
    words[i] = colours[code < 0 ? 0 : code > 255 ? 255 : code + 0.5 | 0];
  }
  canvas.context.putImageData(canvas.image, 0, 0);
}

// For each of the tokens of a grid the number of the square of `cell` by `cell` tokens that it lies in.
function squares([rows, columns], cell) {
  if (cell === 1) return null;
  const across = Math.ceil(columns / cell);
  return Int32Array.from({ length: rows * columns }, (_, i) => Math.floor(Math.floor(i / columns) / cell) * across + Math.floor(i % columns / cell));
}

// The picture with a map on it; with `move` a grid of patches that pointer and arrow keys go over.
class Board {
  constructor(host, label, { move = null, lines = false } = {}) {
    this.element = host;
    host.className = 'board';
    this.picture = make('img', { className: 'picture', alt: '' });
    this.canvas = make('canvas', { className: 'overlay' });
    this.canvas.setAttribute('aria-hidden', 'true');
    this.gridLines = draw('path', { class: 'grid' });
    this.marks = ['mark under', 'mark'].map(name => draw('rect', { class: name, width: 1, height: 1, visibility: 'hidden' }));
    this.svg = draw('svg', { class: 'lines', preserveAspectRatio: 'none', 'aria-hidden': 'true' }, this.gridLines, ...this.marks);
    this.withLines = lines;
    host.append(this.picture, this.canvas, this.svg);
    if (move) this.listen(host, label, move);
  }

  listen(host, label, move) {
    this.cells = [0, 1].map(() => make('div', { role: 'gridcell', tabIndex: -1 }));
    this.rows = this.cells.map(cell => make('div', { role: 'row' }, cell));
    this.area = make('div', { className: 'cells', role: 'grid', ariaLabel: label }, ...this.rows);
    host.append(this.area);
    const at = event => {
      const box = this.area.getBoundingClientRect(), [rows, columns] = this.grid;
      const row = Math.floor((event.clientY - box.top) / box.height * rows), column = Math.floor((event.clientX - box.left) / box.width * columns);
      return Math.min(rows - 1, Math.max(0, row)) * columns + Math.min(columns - 1, Math.max(0, column));
    };
    this.area.addEventListener('pointermove', event => { if (event.pointerType !== 'touch') move.hover(at(event)); });
    this.area.addEventListener('pointerleave', () => move.hover(null));
    this.area.addEventListener('click', event => { move.choose(at(event)); this.cells[0].focus({ preventScroll: true }); });
    this.area.addEventListener('keydown', event => {
      const [rows, columns] = this.grid, row = Math.floor(this.token / columns), column = this.token % columns;
      const go = { ArrowUp: [row - 1, column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1], ArrowRight: [row, column + 1],
        Home: [event.ctrlKey ? 0 : row, 0], End: [event.ctrlKey ? rows - 1 : row, columns - 1], PageUp: [0, column], PageDown: [rows - 1, column],
        Enter: [row, column], ' ': [row, column] }[event.key];
      if (!go) return;
      event.preventDefault();
      move.choose(Math.min(rows - 1, Math.max(0, go[0])) * columns + Math.min(columns - 1, Math.max(0, go[1])));
    });
  }

  show(picture, grid) {
    this.grid = grid;
    this.picture.src = picture.picture;
    const [rows, columns] = grid;
    this.svg.setAttribute('viewBox', `0 0 ${columns} ${rows}`);
    const few = this.withLines && Math.max(rows, columns) <= 64;
    this.gridLines.setAttribute('d', !few ? '' : Array.from({ length: rows - 1 }, (_, i) => `M0 ${i + 1}H${columns}`).join('')
      + Array.from({ length: columns - 1 }, (_, i) => `M${i + 1} 0V${rows}`).join(''));
    if (!this.cells) return;
    this.area.setAttribute('aria-rowcount', rows);
    this.area.setAttribute('aria-colcount', columns);
    for (const cell of this.cells) { cell.style.width = `${100 / columns}%`; cell.style.height = `${100 / rows}%`; }
    this.place(0);
  }

  // The cell that can be reached lies at the token. Two take turns, so that a reader is told of each move.
  place(token) {
    const columns = this.grid[1], focused = this.area.contains(document.activeElement);
    const [cell, other] = this.cells = focused && token !== this.token ? [this.cells[1], this.cells[0]] : this.cells;
    const row = Math.floor(token / columns), column = token % columns;
    this.token = token;
    cell.style.left = `${100 * column / columns}%`;
    cell.style.top = `${100 * row / this.grid[0]}%`;
    cell.tabIndex = 0;
    other.tabIndex = -1;
    cell.parentNode.setAttribute('aria-rowindex', row + 1);
    cell.setAttribute('aria-colindex', column + 1);
    cell.setAttribute('aria-label', `row ${row + 1}, column ${column + 1}`);
    if (focused) cell.focus({ preventScroll: true });
  }

  mark(token) {
    for (const mark of this.marks) {
      mark.setAttribute('visibility', token === null ? 'hidden' : 'visible');
      if (token === null) continue;
      mark.setAttribute('x', token % this.grid[1]);
      mark.setAttribute('y', Math.floor(token / this.grid[1]));
    }
  }
}
