// The page that asks: a picture goes to the server, its answer comes, then what the answer rests on.
const $ = id => document.getElementById(id);
const space = '\u00a0';  // between a number and its unit, where no line may end
const percent = p => p > 0 && p < 0.001 ? `<${space}0.1${space}%` : p < 1 && p > 0.9995 ? `>${space}99.9${space}%` : `${(100 * p).toFixed(p === 0 || p === 1 ? 0 : 1)}${space}%`;
const decimal = (x, digits = 4) => x === null ? '–' : Math.abs(x) >= 1e5 || (x && Math.abs(x) < 1e-3) ? x.toExponential(1).replace('-', '−') : String(+x.toPrecision(digits)).replace('-', '−');
const fixed = x => x.toFixed(2).replace('-', '−');
const quantity = (x, unit) => unit ? `${decimal(x)}${space}${unit}` : decimal(x);
const megabytes = n => `${+(n / 2 ** 20).toPrecision(3)}${space}MB`;
const bdi = text => make('bdi', {}, text);
const isolated = text => `\u2068${text}\u2069`;  // where only text can stand, a name keeps its direction to itself
const listed = (words, last = 'or') => words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} ${last} ${words.at(-1)}`;

let file = null, shownUrl = '', answer = null, target = null, asked = new AbortController();
const board = new Board($('board'), 'The picture');
const store = { get: () => { try { return sessionStorage.getItem('vitreous-key') ?? ''; } catch { return ''; } },
  set: value => { try { sessionStorage.setItem('vitreous-key', value); } catch { /* a browser that keeps nothing */ } } };
let key = store.get(), again = null;

function say(text) { $('said').textContent = text; }

function complain(text) {
  $('fault').hidden = !text;
  $('fault').replaceChildren(text);
  if (text) say(text);
}

// What the server says, or an error in words that can be shown.
async function ask(path, accept, signal) {
  const headers = { 'Content-Type': file.type.startsWith('image/') ? file.type : 'application/octet-stream', Accept: accept };
  if (key) headers['X-API-Key'] = key;
  let response;
  try {
    response = await fetch(path, { method: 'POST', body: file, headers, signal });
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Error('The server cannot be reached.');
  }
  if (response.ok) return accept === 'text/html' ? response.blob() : response.json();
  const told = await response.json().catch(() => ({}));
  if (response.status === 401) {
    $('key-form').hidden = false;
    $('key').focus();
  }
  const wait = response.headers.get('Retry-After');
  throw Object.assign(new Error((told.error ?? `The server answered ${response.status}.`) + (wait ? ` Try again in ${wait}${space}s.` : '')), { status: response.status });
}

// Runs work for the picture that is shown; what a newer one has replaced is not heard of any more.
async function attempt(work, busy) {
  const mine = asked, root = document.documentElement;
  again = () => attempt(work, busy);
  root.classList.add('busy');
  complain('');
  if (busy) $('caption').textContent = busy;
  try {
    await work(mine.signal);
  } catch (error) {
    if (mine !== asked) return;
    $('caption').textContent = '';
    complain(error.message);
  } finally {
    if (mine === asked) root.classList.remove('busy');
  }
}

function take(chosen) {
  if (!chosen) return;
  asked.abort();
  asked = new AbortController();
  [file, answer, target] = [chosen, null, null];
  $('name').textContent = chosen.name;
  $('title').textContent = 'Ask about a picture';
  for (const id of ['unsure', 'account', 'map-row', 'key-form']) $(id).hidden = true;
  $('answers').replaceChildren();
  $('caption').textContent = '';
  board.element.classList.remove('mapped');
  document.documentElement.classList.remove('busy');
  if (chosen.size > page.data.bytes) return complain(`The picture has ${megabytes(chosen.size)}: the server takes up to ${megabytes(page.data.bytes)}.`);
  preview(chosen);
  attempt(predict, 'Asking the model…');
}

// The picture as the browser shows it; some kinds it cannot.
function preview(chosen) {
  URL.revokeObjectURL(shownUrl);
  shownUrl = URL.createObjectURL(chosen);
  $('drop').hidden = true;
  $('shown').hidden = false;
  $('another').hidden = false;
  unseen(false);
  board.picture.onerror = () => unseen(true);
  board.picture.onload = () => frame(board.picture.naturalWidth, board.picture.naturalHeight);
  board.show({ picture: shownUrl }, [1, 1]);
  board.picture.alt = `The picture ${isolated(chosen.name)}`;
}

function unseen(yes) {
  board.picture.hidden = yes;
  board.element.querySelector('.unseen')?.remove();
  if (yes) {
    frame(4, 3);
    board.element.append(make('p', { className: 'unseen' }, 'This browser cannot show this picture.'));
  }
}

function frame(width, height) {
  document.documentElement.style.setProperty('--aspect', width / height);
  document.documentElement.classList.toggle('pixels', Math.min(width, height) < 160);
}

async function predict(signal) {
  const found = await ask(`predict?${new URLSearchParams({ top: 6, name: file.name })}`, 'application/json', signal);
  if (signal.aborted) return;
  answer = found.answers[0];
  target = answer.label ?? Object.keys(answer.values ?? answer.probabilities)[0];
  showAnswer();
  say($('title').textContent);
  if (page.data.explains) await attempt(explain, 'Looking for what the answer rests on…');
  else $('caption').textContent = '';
}

function showAnswer() {
  const rows = answer.values
    ? Object.entries(answer.values).map(([name, value]) => row(name, quantity(value, answer.units[name]), null, answer.intervals[name], answer.units[name]))
    : Object.entries(answer.probabilities).filter(([, p], i) => i === 0 || p >= 0.005).map(([name, p]) => row(name, percent(p), p));
  $('answers').replaceChildren(make('div', { className: 'answers', role: 'group', ariaLabel: page.data.explains ? 'Answers: choose one to see what speaks for it' : 'Answers' }, ...rows));
  const first = Object.entries(answer.values ?? answer.probabilities)[0];
  const head = answer.values ? quantity(first[1], answer.units[first[0]]) : answer.labels ? listed(answer.labels, 'and') || 'None of its labels' : answer.label;
  $('title').replaceChildren(bdi(head));
  const doubt = answer.unsure ? answer.plausible : [];
  $('unsure').hidden = !doubt.length;
  $('unsure').replaceChildren(make('b', {}, 'Unsure.'), ' It may be ', bdi(listed(doubt.length > 6 ? [...doubt.slice(0, 5), `one of ${doubt.length - 5} others`] : doubt)), '.');
  $('account').hidden = !page.data.explains;
}

function row(name, value, share, interval, unit) {
  const mine = make(page.data.explains ? 'button' : 'div', { className: 'answer' }, bdi(name), make('span', { className: 'number' }, value));
  if (share !== null) {
    const bar = make('i');
    bar.style.width = `${100 * share}%`;
    mine.append(make('span', { className: 'bar' }, bar));
  }
  if (interval) mine.append(make('span', { className: 'right' }, `likely from ${quantity(interval[0], unit)} to ${quantity(interval[1], unit)}`));
  mine.classList.toggle('target', name === target);
  if (!page.data.explains) return mine;
  mine.type = 'button';
  mine.setAttribute('aria-pressed', name === target);
  mine.addEventListener('click', () => {
    target = name;
    for (const other of mine.parentNode.children) {
      other.classList.toggle('target', other === mine);
      other.setAttribute('aria-pressed', other === mine);
    }
    asked.abort();
    asked = new AbortController();
    attempt(explain, `Looking for what speaks for ${isolated(name)}…`);
  });
  return mine;
}

// What is asked about, for a URL.
const about = () => new URLSearchParams({ target, name: file.name });

async function explain(signal) {
  const found = await ask(`explain?${about()}`, 'application/json', signal);
  if (signal.aborted) return;
  unseen(false);
  board.picture.onload = board.picture.onerror = null;
  const seen = new Image(), [height, width] = found.grid;
  seen.src = `data:image/png;base64,${found.seen}`;
  await seen.decode();
  if (signal.aborted) return;
  frame(seen.naturalWidth, seen.naturalHeight);
  board.show({ picture: seen.src }, found.grid);
  const values = found.map.flat(), least = Math.min(...values), against = least < 0, low = Math.max(0, least);
  const span = Math.max(...values.map(Math.abs)) - low;
  board.element.classList.toggle('signed', against);
  board.element.classList.add('mapped');
  paint(board.canvas, values.map(value => value - low), height, width, span, { colours: against ? both : warm });
  showLegend($('legend'), against ? 'against' : 'least', against ? 'for' : 'most', against ? both : warm);
  $('map-row').hidden = false;
  const { score, chance } = found.faithfulness;
  const verdict = Math.abs(score) <= chance ? 'within chance: do not believe it' : score > 0 ? 'better than chance' : 'worse than chance';
  $('caption').replaceChildren('What speaks for ', bdi(found.target), `, by ${found.method.replaceAll('_', ' ')}. Faithfulness ${fixed(score)}, ${verdict} (random maps stay within ±${fixed(chance)}).`, found.note ? ` ${found.note}.` : '');
  say($('caption').textContent);
  document.documentElement.dataset.mapped = found.target;
}

// The page with all methods, as a file.
$('account').addEventListener('click', async () => {
  const button = $('account'), words = button.textContent, mine = asked;
  button.disabled = true;
  button.textContent = 'Working it out: up to some minutes…';
  try {
    const link = make('a', { href: URL.createObjectURL(await ask(`explain?${about()}`, 'text/html', mine.signal)), download: 'why.html' });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    if (mine === asked) complain(error.message);
  } finally {
    button.disabled = false;
    button.textContent = words;
  }
});

$('key-form').addEventListener('submit', event => {
  event.preventDefault();
  store.set(key = $('key').value.trim());
  $('key-form').hidden = true;
  again?.();
});
$('opacity').addEventListener('input', () => {
  document.documentElement.style.setProperty('--opacity', $('opacity').value / 100);
  document.documentElement.classList.toggle('unmapped', $('opacity').value === '0');
});

for (const [button, input] of [['drop', 'file'], ['another', 'file'], ['photograph', 'camera']]) $(button).addEventListener('click', () => $(input).click());
for (const id of ['file', 'camera']) $(id).addEventListener('change', event => { take(event.target.files[0]); event.target.value = ''; });
addEventListener('paste', event => take([...event.clipboardData?.files ?? []][0]));
addEventListener('dragover', event => { event.preventDefault(); document.documentElement.classList.add('over'); });
addEventListener('dragleave', event => { if (!event.relatedTarget) document.documentElement.classList.remove('over'); });
addEventListener('drop', event => {
  event.preventDefault();
  document.documentElement.classList.remove('over');
  take(event.dataTransfer.files[0]);
});

const touch = matchMedia('(pointer: coarse)').matches;
$('photograph').hidden = !touch;
if (touch) $('drop-words').textContent = 'of this device';
$('facts').replaceChildren(...page.data.facts.flatMap(([name, text]) => [make('dt', {}, bdi(name)), make('dd', {}, bdi(text))]));
document.documentElement.dataset.ready = '';
