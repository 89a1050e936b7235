// The page of explanations. One chosen patch, shown on every board; hovering shows another one for as long.
const $ = id => document.getElementById(id);
const space = '\u00a0';  // between a number and its unit, where no line may end
const percent = p => p === null || p === undefined ? '–' : p > 0 && p < 0.001 ? `<${space}0.1${space}%` : p < 1 && p > 0.9995 ? `>${space}99.9${space}%`
  : `${(100 * p).toFixed(p === 0 || p === 1 ? 0 : 1)}${space}%`;
const decimal = (x, digits = 3) => x === null || x === undefined ? '–'
  : Math.abs(x) >= 1e5 || (x && Math.abs(x) < 1e-3) ? x.toExponential(1).replace('-', '−') : String(+x.toPrecision(digits)).replace('-', '−');
const fixed = (x, places = 2) => x === null || x === undefined ? '–' : x.toFixed(places).replace('-', '−');
const signed = (x, places = 2) => (x > 0 ? '+' : '') + fixed(x, places);
const places = step => Math.min(12, Math.max(0, -Math.floor(Math.log10(step) + 1e-9)));  // that tell apart what differs by a step
const scored = x => fixed(x, Math.max(2, places(picture.chance || 1)));
const quantity = (x, unit) => x === null || x === undefined ? '–' : unit === null || unit === undefined ? percent(x) : unit ? `${decimal(x, 4)}${space}${unit}` : decimal(x, 4);
const listed = words => words.length < 2 ? words.join('') : `${words.slice(0, -1).join(', ')} and ${words.at(-1)}`;
const bdi = text => make('bdi', {}, text);
const isolated = text => `\u2068${text}\u2069`;  // where only text can stand, a name keeps its direction to itself
const the = name => /\d$/.test(name) ? isolated(name) : `the ${isolated(name)}`;
const capital = text => text.replace(/^\p{L}/u, letter => letter.toUpperCase());
const data = page.data, facts = data.facts;

let picture, grid, tokens;  // the one that is shown, its token grid, and how many tokens that is
const state = { from: 'all', patch: 0, hover: null, block: 0, head: 0, map: 0, part: 0 };
let live = {};  // arrays of the shown picture, as they come out of the file
const patchWords = token => `row ${Math.floor(token / grid[1]) + 1}, column ${token % grid[1] + 1}`;
const shownPatch = () => state.hover ?? state.patch;
const shownFrom = () => state.hover !== null ? 'patch' : state.from;

let saying = 0;
function say(text) {
  clearTimeout(saying);
  saying = setTimeout(() => { $('said').textContent = text; }, 100);
}

const move = {
  hover(token) {
    if (token === state.hover) return;
    state.hover = token;
    drawPatch();
  },
  choose(token) {
    Object.assign(state, { patch: token, hover: null, from: 'patch' });
    for (const board of boards) if (board.cells) board.place(token);
    drawPatch();
    say(live.attention ? $('attention-caption').textContent : `patch ${patchWords(token)}`);
  },
};
const boards = [
  new Board($('map-board'), 'Attribution'),
  new Board($('attention-board'), 'Patches of the picture: the arrow keys move over them', { move, lines: true }),
  new Board($('ledger-board'), 'Contribution'),
  new Board($('position-board'), 'Positions: the arrow keys move over them', { move }),
  new Board($('split-board'), 'Tokens: the arrow keys move over them', { move, lines: true }),
];
const [mapBoard, attentionBoard, ledgerBoard, positionBoard, splitBoard] = boards;

addEventListener('keydown', event => {
  if (event.key !== 'Escape' || !picture) return;
  Object.assign(state, { from: startFrom(), hover: null, head: 0 });
  drawPatch();
  say(live.attention ? $('attention-caption').textContent : '');
});
for (const slider of document.querySelectorAll('.opacity-slider')) {
  slider.addEventListener('input', () => {
    for (const other of document.querySelectorAll('.opacity-slider')) other.value = slider.value;
    document.documentElement.style.setProperty('--opacity', slider.value / 100);
    document.documentElement.classList.toggle('unmapped', slider.value === '0');
  });
}

function drawPatch() {
  drawAttention();
  drawPosition();
  drawSplits();
}

// The answer.
function showAnswer() {
  const [height, width] = picture.size, scale = Math.min(height, width);
  $('seen').src = picture.picture;
  $('seen').alt = `The picture ${isolated(picture.name)} as the model sees it`;
  $('seen-caption').textContent = `As the model sees it: ${height} × ${width} pixels` + (picture.shrunk > 1 ? `, shown at 1/${picture.shrunk} of that` : '');
  document.documentElement.classList.toggle('pixels', scale < 160);
  $('name').textContent = picture.name;
  $('name').title = picture.name;
  const first = picture.answers[0], isFirst = first && first.label === picture.target, measured = first && first.unit !== null;
  const asked = [bdi(isFirst && measured ? quantity(first.value, first.unit) : picture.target), ...(picture.against ? [' rather than ', bdi(picture.against)] : [])];
  $('why').replaceChildren(...(picture.target.trim() ? [isFirst ? 'Why ' : 'What speaks for ', ...asked, '?'] : ['Why this answer?']));
  const rows = picture.answers.map(({ label, value, unit, interval }) => {
    const row = make('div', { className: 'answer' + (label === picture.target ? ' target' : label === picture.against ? ' against' : '') }, bdi(label), make('span', { className: 'number' }, quantity(value, unit)));
    row.firstChild.title = label;
    if (unit === null) {
      const bar = make('i');
      bar.style.width = `${100 * Math.min(1, Math.max(0, value ?? 0))}%`;
      row.append(make('span', { className: 'bar' }, bar));
    }
    if (interval) row.append(make('span', { className: 'right' }, `likely from ${quantity(interval[0], unit)} to ${quantity(interval[1], unit)}`));
    return row;
  });
  $('answers').replaceChildren(make('div', { className: 'answers' }, ...rows, picture.others ? make('p', { className: 'small muted' }, picture.others) : null));
  $('accuracy').hidden = !facts.accuracy;
  $('accuracy').replaceChildren(facts.accuracy);
  $('facts').replaceChildren(...facts.rows.flatMap(([name, text]) => [make('dt', {}, bdi(name)), make('dd', {}, bdi(text))]));
}

// Attributions.
async function showAttributions() {
  const maps = picture.attributions;
  $('attributions').hidden = !maps.length;
  if (!maps.length) return;
  $('score-words').textContent = facts.score;
  const mine = live;
  mine.maps = await Promise.all(maps.map(map => unpack(map.map)));
  if (mine !== live) return;
  const { chance, edges } = picture, numbers = [0, chance, -chance, edges, ...maps.map(map => map.score)].filter(x => x !== null);
  const low = Math.min(...numbers), span = Math.max(...numbers) - low || 1;
  const at = (className, x, until = x) => {
    const mark = make('i', { className });
    mark.style.left = `${2 + 96 * (x - low) / span}%`;
    if (until > x) mark.style.width = `${96 * (until - x) / span}%`;
    return mark;
  };
  $('score-key').hidden = maps.every(map => map.score === null);
  $('chance-words').textContent = chance === null ? '' : `On this picture 95 of 100 random maps stay within ±${scored(chance)}: a score there tells you nothing.`;
  $('maps').replaceChildren(...maps.map((map, i) => {
    const canvas = make('canvas'), thumb = make('span', { className: 'thumb' }, make('img', { className: 'picture', alt: '', src: picture.picture }), canvas);
    paintMap(canvas, i);
    const strip = make('span', { className: 'strip' });
    if (chance !== null) strip.append(at('chance', -chance, chance));
    if (edges !== null) strip.append(at('tick', edges));
    if (map.score !== null) strip.append(at('dot', map.score));
    const button = make('button', { type: 'button', className: 'multiple' }, thumb,
      make('bdi', { className: 'what' }, map.name));
    if (map.score !== null) button.append(make('span', { className: 'row' }, strip, scored(map.score)));
    button.addEventListener('click', () => { state.map = i; drawMap(); say($('map-caption').textContent); });
    return button;
  }));
  state.map = 0;
  drawMap();
}

function paintMap(canvas, i) {
  const map = picture.attributions[i], [height, width] = live.maps[i].shape, levels = map.map.zero ? 127 : 255;
  canvas.classList.toggle('smooth', !map.tokens && Math.min(height, width) > 64);
  canvas.parentElement?.classList.toggle('signed', map.map.zero !== undefined);
  paint(canvas, live.maps[i].values, height, width, map.map.scale * levels, { colours: map.map.zero ? both : warm });
}

function drawMap() {
  const map = picture.attributions[state.map], negative = map.map.zero;
  paintMap(mapBoard.canvas, state.map);
  mapBoard.element.classList.add('mapped');
  mapBoard.element.classList.toggle('signed', negative !== undefined);
  showLegend($('map-legend'), negative ? 'against' : 'least', negative ? 'for' : 'most', negative ? both : warm);
  [...$('maps').children].forEach((button, i) => button.setAttribute('aria-pressed', i === state.map));
  const words = [make('b', {}, bdi(map.name)), '. ', bdi(map.line), ' '];
  if (map.score !== null) {
    words.push(`Faithfulness ${scored(map.score)}${verdict(map.score, picture)}. `);
  }
  if (map.least > 0.5 && map.least < 1) words.push(`The parts count nearly alike: the least for ${percent(map.least)} of the most. `);
  if (!map.tokens) words.push('The hundredth of its values that are largest share the strongest colour. ');
  if (map.note) words.push(bdi(map.note));
  $('map-caption').replaceChildren(...words);
}

function verdict(score, { chance, edges }) {
  if (chance === null) return '';
  const beside = edges === null ? '' : `, and the picture’s edges alone have ${scored(edges)}`;
  const found = Math.abs(score) <= chance ? 'within chance' : score < 0 ? 'worse than chance' : edges !== null && score <= edges ? 'better than chance, no better than edges' : 'better than chance';
  return `, ${found}: random maps stay within ±${scored(chance)}${beside}`;
}

// Attention. maps[0] is the mean of the heads, maps[1 + h] that of a head; each over the keys, with its largest value.
function startFrom() {
  return picture.prefix.length && picture.attention ? 0 : live.pool ? 'pool' : 'all';
}

async function showAttention() {
  const attention = picture.attention;
  $('attention').hidden = !attention;
  const mine = live;
  mine.pool = picture.pool ? await unpack(picture.pool) : null;
  if (mine !== live) return;
  state.from = startFrom();
  if (!attention) return;
  const keys = attention.keys[0] * attention.keys[1], heads = attention.heads, shownHeads = Math.max(heads, live.pool ? live.pool.shape[0] : 0);
  live.attention = { blocks: new Map(), keys, where: squares(grid, attention.cell * attention.factor), rowOf: squares(grid, attention.cell),
    maps: Array.from({ length: shownHeads + 1 }, () => new Float32Array(Math.max(keys, live.pool ? tokens : 0))), tops: new Float32Array(shownHeads + 1), prefixes: [] };
  $('attention-words').textContent = `Each map has a scale of its own; the number below it is its largest share. ${attention.words}`;
  for (const place of document.querySelectorAll('[data-fill]')) {
    place.textContent = { grid: grid.join('\u00a0×\u00a0'), blocks: attention.layers.length > 1 ? `${attention.layers.length} blocks` : 'blocks',
      heads: heads > 1 ? `Each block does it ${heads} times side by side: those are its heads.` : '' }[place.dataset.fill];
  }
  const choices = [...picture.prefix.map((name, i) => [i, name]), ...(live.pool ? [['pool', 'pooling']] : []), ['all', 'all patches'], ['patch', 'one patch']];
  $('from').replaceChildren(...choices.map(([from, name]) => {
    const button = make('button', { type: 'button', className: 'button' }, bdi(name));
    button.dataset.from = from;
    button.addEventListener('click', () => { state.from = from; drawPatch(); say($('attention-caption').textContent); });
    return button;
  }));
  $('heads').replaceChildren(...Array.from({ length: shownHeads }, (_, i) => {
    const top = make('span'), button = make('button', { type: 'button', className: 'multiple' }, make('span', { className: 'thumb' }, make('img', { className: 'picture', alt: '', src: picture.picture }), make('canvas')),
      make('span', { className: 'row' }, make('span', { className: 'what' }, String(i + 1)), top));
    button.setAttribute('aria-label', `head ${i + 1}`);
    button.addEventListener('click', () => chooseHead(i + 1));
    return Object.assign(button, { canvas: button.querySelector('canvas'), top });
  }));
  $('heads').closest('.field').hidden = shownHeads < 2;
  state.head = 0;
  $('block').max = attention.layers.length - 1;
  $('block').closest('.field').hidden = attention.layers.length < 2;
  $('block').value = state.block = attention.layers.length - 1;
  await loadBlock(state.block);
}

function chooseHead(head) {
  state.head = head;
  drawAttention();
  say($('attention-caption').textContent);
}
$('mean').addEventListener('click', () => chooseHead(0));

async function loadBlock(index, own = live.attention) {
  const layer = picture.attention.layers[index];
  if (!own.blocks.has(index)) {
    const [codes, top, prefix] = await Promise.all([unpack(layer.codes, true), unpack(layer.top), unpack(layer.prefix)]);
    own.blocks.set(index, { codes: codes.values, dtype: layer.codes.dtype, top: top.values, prefix: prefix.values, rows: top.shape[1], means: null });
  }
  return own.blocks.get(index);
}

$('block').addEventListener('input', async () => {
  const own = live.attention, wanted = state.block = +$('block').value;
  $('block-value').textContent = picture.attention.layers[wanted].number;
  await loadBlock(wanted);
  if (own !== live.attention || wanted !== state.block) return;
  drawAttention();
  say($('attention-caption').textContent);
});

const levels = { u8: Float32Array.from({ length: 256 }, (_, i) => i / 255), u4: Float32Array.from({ length: 16 }, (_, i) => (i / 15) ** 2) };

// What one head gives from one token, added to `into` (keys) with a weight.
function addRow(block, head, row, keys, weight, into) {
  const start = (head * block.rows + row) * keys, level = levels[block.dtype], factor = block.top[head * block.rows + row] * weight;
  for (let i = 0; i < keys; i++) into[i] += level[block.codes[start + i]] * factor;
}

function meansOf(block, heads, keys, prefix) {
  if (block.means) return block.means;
  const count = block.rows - prefix, maps = Array.from({ length: heads }, () => new Float32Array(keys));
  const prefixes = Array.from({ length: heads }, (_, h) => Array.from({ length: prefix }, (_, p) => {
    let sum = 0;
    for (let row = prefix; row < block.rows; row++) sum += block.prefix[(h * block.rows + row) * prefix + p];
    return sum / count;
  }));
  for (let h = 0; h < heads; h++) for (let row = prefix; row < block.rows; row++) addRow(block, h, row, keys, 1 / count, maps[h]);
  return block.means = { maps, prefixes };
}

// Fills `maps`, `tops` and `prefixes` for where one looks from. Returns how many heads there are.
function look(own, from, patch) {
  const { maps, tops } = own, prefix = picture.prefix.length;
  let heads, keys;
  if (from === 'pool') {
    [heads, keys] = live.pool.shape;
    for (let h = 0; h < heads; h++) maps[h + 1].set(live.pool.values.subarray(h * keys, (h + 1) * keys));
    own.prefixes = null;
  } else {
    const block = own.blocks.get(state.block);
    ({ heads } = picture.attention);
    keys = own.keys;
    const means = from === 'all' ? meansOf(block, heads, keys, prefix) : null;
    const row = from === 'patch' ? prefix + (own.rowOf ? own.rowOf[patch] : patch) : from;
    own.prefixes = [];
    for (let h = 0; h < heads; h++) {
      if (means) maps[h + 1].set(means.maps[h]);
      else { maps[h + 1].fill(0); addRow(block, h, row, keys, 1, maps[h + 1]); }
      own.prefixes.push(means ? means.prefixes[h] : Array.from(block.prefix.subarray((h * block.rows + row) * prefix, (h * block.rows + row + 1) * prefix)));
    }
  }
  maps[0].fill(0);
  for (let h = 1; h <= heads; h++) for (let i = 0; i < keys; i++) maps[0][i] += maps[h][i] / heads;
  for (let h = 0; h <= heads; h++) {
    tops[h] = 0;
    for (let i = 0; i < keys; i++) if (maps[h][i] > tops[h]) tops[h] = maps[h][i];
  }
  return heads;
}

function drawAttention() {
  const own = live.attention;
  if (!own) return;
  const from = shownFrom(), patch = shownPatch();
  if (from !== 'pool' && !own.blocks.has(state.block)) return;
  const heads = look(own, from, patch), where = from === 'pool' ? null : own.where, head = Math.min(state.head, heads);
  const buttons = $('heads').children;
  $('mean').setAttribute('aria-pressed', !head);
  for (let h = 0; h < buttons.length; h++) {
    buttons[h].hidden = h >= heads;
    if (h >= heads) continue;
    paint(buttons[h].canvas, own.maps[h + 1], ...grid, own.tops[h + 1], { where });
    buttons[h].top.textContent = `${Math.round(100 * own.tops[h + 1])} %`;
    buttons[h].setAttribute('aria-pressed', h + 1 === head);
  }
  paint(attentionBoard.canvas, own.maps[head], ...grid, own.tops[head], { where });
  attentionBoard.element.classList.add('mapped');
  attentionBoard.mark(from === 'patch' ? patch : null);
  showLegend($('attention-legend'), '0', percent(own.tops[head]));
  $('block').disabled = from === 'pool';
  $('block-value').textContent = picture.attention.layers[state.block].number;
  $('block').setAttribute('aria-valuetext', `block ${picture.attention.layers[state.block].number}`);
  for (const button of $('from').children) button.setAttribute('aria-pressed', button.dataset.from === String(from));
  $('attention-caption').textContent = attentionWords(own, from, patch, head, heads);
}

function attentionWords(own, from, patch, head, heads) {
  const map = own.maps[head], pooling = from === 'pool', size = pooling ? 1 : picture.attention.cell * picture.attention.factor;
  const across = Math.ceil(grid[1] / size), best = [];
  for (let i = 0; i < (pooling ? tokens : own.keys); i++) {
    if (best.length === 3 && map[i] <= map[best[2]]) continue;
    best.push(i);
    best.sort((a, b) => map[b] - map[a]);
    best.length = Math.min(best.length, 3);
  }
  const range = (name, start, end) => start === end ? `${name} ${start}` : `${name}s ${start} to ${end}`;
  const place = key => {
    if (size === 1 && from === 'patch' && key === patch) return 'itself';
    const row = Math.floor(key / across) * size, column = key % across * size, last = [Math.min(row + size, grid[0]), Math.min(column + size, grid[1])];
    return `${range('row', row + 1, last[0])}, ${range('column', column + 1, last[1])}`;
  };
  const who = from === 'patch' ? `Patch ${patchWords(patch)} attends` : from === 'all' ? 'The patches, on average, attend' : pooling ? 'Pooling attends' : `${capital(the(picture.prefix[from]))} attends`;
  const which = picture.attention.mean ? `mean of ${picture.attention.mean} heads` : heads === 1 ? '' : head ? `head ${head}` : `mean of ${heads} heads`;
  let words = `${who} most to ${listed(best.map(key => `${place(key)} (${percent(map[key])})`))}`;
  if (own.prefixes && picture.prefix.length) {
    const parts = picture.prefix.map((name, p) => {
      const share = head ? own.prefixes[head - 1][p] : own.prefixes.reduce((sum, row) => sum + row[p], 0) / heads;
      return `${percent(share)} to ${the(name)}`;
    });
    words += `; ${listed(parts)}`;
  }
  return `${words}. ${pooling ? 'Pooling' : `Block ${picture.attention.layers[state.block].number}`}${which ? `, ${which}` : ''}.`;
}

// The lens.
function showLens() {
  const lens = picture.lens;
  $('lens').hidden = !lens;
  if (!lens) return;
  const depth = lens.values.length, after = i => i ? `after block ${i}` : 'before block 1', number = lensNumber(lens);
  const head = make('tr', {}, make('th', { scope: 'col' }, ''), ...lens.names.map(name => make('th', { scope: 'col', className: 'number' }, bdi(name))));
  const rows = lens.values.map((row, i) => make('tr', {}, make('th', { scope: 'row' }, after(i)), ...row.map(value => make('td', { className: 'number' }, number(value)))));
  $('lens-table').replaceChildren(make('table', {}, make('thead', {}, head), make('tbody', {}, ...rows)));
  drawLens();
}

// Round numbers from low to high, three steps or some more, and how many decimals tell them apart.
function ticksOf(low, high) {
  const most = (high - low) / 3, power = 10 ** Math.floor(Math.log10(most)), step = power * ([5, 2].find(times => times * power <= most) ?? 1);
  const first = Math.ceil(low / step - 1e-6), count = Math.floor(high / step + 1e-6) - first + 1;
  return { ticks: Array.from({ length: count }, (_, i) => (first + i) * step), decimals: places(step) };
}

function lensRange(lens) {
  const known = lens.values.flat().filter(x => x !== null), low = Math.min(...known), high = Math.max(...known);
  return lens.unit === null ? [0, 1] : low < high ? [low, high] : [(known[0] ?? 0) - 1, (known[0] ?? 0) + 1];
}

// How a value is written so that those of all blocks can be told apart.
function lensNumber(lens) {
  if (lens.unit === null) return percent;
  const { decimals } = ticksOf(...lensRange(lens));
  return x => x === null ? '–' : `${fixed(x, decimals + 1)}${lens.unit && space + lens.unit}`;
}

function drawLens() {
  const lens = picture?.lens, host = $('lens-chart');
  if (!lens || !host.clientWidth) return;
  const width = host.clientWidth, narrow = width < 520, height = narrow ? 260 : 320, depth = lens.values.length, probability = lens.unit === null;
  const [low, high] = lensRange(lens), { ticks, decimals } = probability ? { ticks: [0, 0.25, 0.5, 0.75, 1] } : ticksOf(low, high);
  const marks = ticks.map(tick => probability ? `${100 * tick}` : fixed(tick, decimals)), number = lensNumber(lens);
  const written = x => probability ? `${Math.round(100 * (x ?? 0))} %` : fixed(x, decimals + 1);
  const most = narrow ? 11 : 16, named = lens.names.map(name => isolated([...name].length > most ? `${[...name].slice(0, most - 1).join('')}…` : name));
  const pen = document.createElement('canvas').getContext('2d'), widest = texts => Math.max(...texts.map(text => pen.measureText(text).width));
  pen.font = `600 13px ${getComputedStyle(host).fontFamily}`;  // fonts differ in width from machine to machine
  const beside = Math.max(narrow ? 116 : 168, 14 + widest(lens.values.flat().map(written)) + widest(named.map(name => ` ${name}`)));
  const box = { left: 16 + 7 * Math.max(...marks.map(mark => mark.length)), right: width - beside, top: 18, bottom: height - 34 };
  const x = i => box.left + (box.right - box.left) * (depth > 1 ? i / (depth - 1) : 1), y = v => box.bottom - (box.bottom - box.top) * ((v ?? low) - low) / (high - low);
  const svg = draw('svg', { width, height, viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': lensWords(lens) });
  ticks.forEach((tick, i) => svg.append(draw('line', { class: 'rule', x1: box.left, x2: box.right, y1: y(tick), y2: y(tick) }), draw('text', { x: box.left - 8, y: y(tick) + 4, 'text-anchor': 'end' }, marks[i])));
  svg.append(draw('text', { x: box.left, y: 6 }, probability ? 'probability in %' : lens.unit));
  const every = Math.ceil(depth / Math.max(2, (box.right - box.left) / 40));
  for (let i = 1; i < depth; i++) if ((depth - 1 - i) % every === 0) svg.append(draw('text', { x: x(i), y: box.bottom + 20, 'text-anchor': 'middle' }, String(i)));
  svg.append(draw('text', { x: x(0), y: box.bottom + 20, 'text-anchor': 'middle' }, 'start'), draw('text', { x: (x(0) + box.right) / 2, y: box.bottom + 34, 'text-anchor': 'middle' }, 'after block'));
  const target = lens.names.indexOf(picture.target), order = lens.names.map((_, k) => k).sort((a, b) => (a === target) - (b === target));
  const colour = k => target < 0 ? `c${k}` : k === target ? 'c0 target' : `c${(k < target ? k : k - 1) + 1}`;
  const labels = lens.names.map((name, k) => ({ k, y: y(lens.values[depth - 1][k]) + 4 })).sort((a, b) => a.y - b.y);
  labels.forEach((label, i) => { if (i) label.y = Math.max(label.y, labels[i - 1].y + 17); });
  for (let i = labels.length - 1, most = box.bottom + 4; i >= 0; i--, most -= 17) labels[i].y = Math.min(labels[i].y, most);
  const cursor = draw('line', { class: 'cursor', y1: box.top, y2: box.bottom, visibility: 'hidden' });
  svg.append(cursor);
  for (const k of order) svg.append(draw('path', { class: colour(k), d: lens.values.map((row, i) => `${i ? 'L' : 'M'}${x(i).toFixed(1)} ${y(row[k]).toFixed(1)}`).join('') }));
  const values = [], dots = [];
  for (const { k, y: top } of labels) {
    const name = lens.names[k], dot = draw('circle', { class: colour(k), r: k === target ? 4.5 : 3.5 }), value = draw('tspan');
    svg.append(dot, draw('text', { class: `name ${colour(k)}`, x: box.right + 10, y: top }, draw('title', {}, name), value, ` ${named[k]}`));
    values.push([k, value]);
    dots.push([k, dot]);
  }
  const at = i => {
    for (const [k, value] of values) value.textContent = written(lens.values[i][k]);
    for (const [k, dot] of dots) { dot.setAttribute('cx', x(i)); dot.setAttribute('cy', y(lens.values[i][k])); }
    cursor.setAttribute('x1', x(i));
    cursor.setAttribute('x2', x(i));
    cursor.setAttribute('visibility', i === depth - 1 ? 'hidden' : 'visible');
  };
  at(depth - 1);
  svg.addEventListener('pointermove', event => {
    const place = (event.clientX - svg.getBoundingClientRect().left - x(0)) / (x(1) - x(0) || 1);
    at(Math.min(depth - 1, Math.max(0, Math.round(place))));
  });
  svg.addEventListener('pointerleave', () => at(depth - 1));
  host.replaceChildren(svg);
}

function lensWords(lens, number = lensNumber(lens)) {
  const last = lens.values.length - 1, parts = lens.names.map((name, k) => `${isolated(name)} from ${number(lens.values[0][k])} to ${number(lens.values[last][k])}`);
  return `The answer by depth: ${listed(parts)}`;
}
new ResizeObserver(drawLens).observe($('lens-chart'));

// The ledger.
async function showLedger() {
  const ledger = picture.ledger;
  $('ledger').hidden = !ledger;
  if (!ledger) return;
  const mine = live;
  mine.parts = ledger.tokens ? await Promise.all(ledger.tokens.maps.map(map => unpack(map))) : null;
  if (mine !== live) return;
  $('ledger-words').textContent = ledger.start !== null ? 'The number is a sum, of the mean of the training pictures and what the model adds to it for this one.'
    : `Before it becomes a probability the answer is a score, and the score is a sum.${picture.against ? ' Here it is the score of the first answer less that of the second.' : ''}`;
  $('ledger-figure').hidden = !live.parts;
  $('ledger').classList.toggle('alone', !live.parts);
  const rows = ledger.names.map((name, i) => ({ name, value: ledger.values[i], kind: '', map: i }));
  if (ledger.start !== null) rows.unshift({ name: 'mean of the training pictures', value: ledger.start, kind: 'start' });
  if (ledger.others) rows.push({ name: `${ledger.others} other${ledger.others > 1 ? 's' : ''}`, value: ledger.rest, kind: 'rest', map: ledger.names.length });
  rows.push({ name: ledger.unit === null ? 'score (logit)' : ledger.unit ? `sum (${ledger.unit})` : 'sum', value: ledger.total, kind: 'sum', map: ledger.names.length + 1 });
  const barred = row => row.kind === '' || row.kind === 'rest', values = rows.map(row => barred(row) ? row.value ?? 0 : 0), low = Math.min(0, ...values), span = Math.max(0, ...values) - low || 1;
  live.places = span >= 1 && span < 100 ? 2 : places(span / 500);
  $('ledger-rows').style.setProperty('--zero', `${-100 * low / span}%`);
  $('ledger-rows').replaceChildren(...rows.map(row => {
    const { map } = row, bar = make('i', { className: row.value < 0 ? 'against' : '' });
    bar.style.left = `${100 * (Math.min(0, row.value) - low) / span}%`;
    bar.style.width = `${100 * Math.abs(row.value) / span}%`;
    let name = bdi(row.name);
    name.title = row.name;
    const picks = live.parts && map !== undefined;
    if (picks) {
      name = make('button', { type: 'button', className: 'pick' }, name);
      name.dataset.map = map;
      name.addEventListener('click', () => { state.part = map; drawPart(map); say($('ledger-caption').textContent); });
    }
    const line = make('tr', { className: row.kind },
      make('th', { scope: 'row', colSpan: barred(row) ? 1 : 2 }, name), barred(row) ? make('td', {}, make('span', { className: 'bar' }, bar)) : null,
      make('td', { className: 'number' }, row.kind === 'start' || (ledger.start !== null && row.kind === 'sum') ? fixed(row.value, live.places) : signed(row.value, live.places)));
    if (picks) {
      line.addEventListener('pointerenter', event => { if (event.pointerType !== 'touch') drawPart(map); });
      line.addEventListener('pointerleave', () => drawPart(state.part));
    }
    return line;
  }));
  state.part = 0;
  if (live.parts) drawPart(0);
}

function drawPart(i) {
  const ledger = picture.ledger, part = live.parts[i], count = ledger.names.length;
  let span = 0;
  for (const value of part.values) span = Math.max(span, Math.abs(value));
  paint(ledgerBoard.canvas, part.values, ...grid, span, { colours: both });
  ledgerBoard.element.classList.add('mapped', 'signed');
  showLegend($('ledger-legend'), `against −${decimal(span, 2)}`, `for +${decimal(span, 2)}`, both);
  for (const button of document.querySelectorAll('.pick')) button.setAttribute('aria-pressed', +button.dataset.map === i);
  const [name, value] = i < count ? [isolated(capital(ledger.names[i])), ledger.values[i]] : i === count ? ['All others', ledger.rest] : ['The whole', ledger.start === null ? ledger.total : ledger.total - ledger.start];
  const rest = ledger.tokens.prefix[i], own = picture.prefix.length ? `; of it ${signed(rest, live.places)} by way of ${listed(picture.prefix.map(the))}` : '';
  $('ledger-caption').textContent = `${name} gives ${signed(value, live.places)}${own}. The map shows where on the picture it comes from.`;
}

// Position embeddings.
async function showPosition() {
  $('position').hidden = !picture.position;
  if (!picture.position) return;
  const mine = live, own = await unpack(picture.position.map), cell = picture.position.cell;
  if (mine !== live) return;
  live.position = own;
  Object.assign(own, { where: squares(grid, cell), span: picture.position.map.scale * 255, across: Math.ceil(grid[1] / cell), down: Math.ceil(grid[0] / cell) });
  positionBoard.element.classList.add('bare');
  const high = picture.position.low + own.span;
  showLegend($('position-legend'), `unlike ${decimal(picture.position.low, 2)}`, `${decimal(high, 2)} alike`, solid);
  const { across, down, shape: [count] } = own, gap = 1, width = across * (across + gap) - gap, height = down * (down + gap) - gap, image = new Float32Array(height * width);
  image.fill(NaN);
  for (let i = 0; i < count; i++) for (let j = 0; j < count; j++) {
    const y = Math.floor(i / across) * (down + gap) + Math.floor(j / across), x = i % across * (across + gap) + j % across;
    image[y * width + x] = own.values[i * count + j];
  }
  paint($('mosaic'), image, height, width, own.span, { colours: solid });
  $('mosaic').classList.toggle('few', Math.max(across, down) <= 8);
  const words = $('mosaic').words;
  for (let i = 0; i < words.length; i++) if (Number.isNaN(image[i])) words[i] = 0;
  $('mosaic').context.putImageData($('mosaic').image, 0, 0);
}

$('mosaic').addEventListener('click', event => {
  const box = $('mosaic').getBoundingClientRect(), row = Math.floor((event.clientY - box.top) / box.height * grid[0]), column = Math.floor((event.clientX - box.left) / box.width * grid[1]);
  move.choose(Math.min(grid[0] - 1, Math.max(0, row)) * grid[1] + Math.min(grid[1] - 1, Math.max(0, column)));
});

function drawPosition() {
  const own = live.position;
  if (!own) return;
  const patch = shownPatch(), count = own.shape[0], row = own.where ? own.where[patch] : patch;
  paint(positionBoard.canvas, own.values.subarray(row * count, (row + 1) * count), ...grid, own.span, { where: own.where, colours: solid });
  positionBoard.mark(patch);
  $('position-caption').textContent = `Likeness (cosine) of the position embedding to that of patch ${patchWords(patch)}.`;
}

// Soft splits: how often each place of a split's input is held by the chosen token, from the last split back to the pixels.
function showSplits() {
  const splits = picture.splits;
  $('splits').hidden = !splits.length;
  live.steps = [];
  let step = 1, centre = 0.5;  // in pixels: from one place to the next, and the first one's middle
  for (const { kernel, stride, padding } of splits) {
    live.steps.push({ step, centre });
    centre += step * ((kernel - 1) / 2 - padding);
    step *= stride;
  }
  $('split-rows').replaceChildren(...splits.map(({ kernel, stride, grid: made }, i) => {
    const what = i ? 'tokens' : 'pixels', from = i ? splits[i - 1].grid : picture.size, canvas = make('canvas', { width: 288, height: 288 }), held = make('span', { className: 'held' });
    const words = make('p', {}, make('b', {}, `${i + 1}. Windows of ${kernel} × ${kernel} ${what}`), `, one every ${stride}: ${from.join(' × ')} ${what} become ${made.join(' × ')} tokens. `, held);
    return Object.assign(make('li', {}, canvas, words), { canvas, held });
  }));
}

// [row or column of the input, how often] for each split and one side of the picture.
function heldBy(index, splits) {
  const found = [];
  let counts = new Map([[index, 1]]);
  for (let i = splits.length - 1; i >= 0; i--) {
    const next = new Map(), { kernel, stride, padding } = splits[i];
    for (const [at, times] of counts) for (let j = 0; j < kernel; j++) {
      const place = at * stride - padding + j;
      next.set(place, (next.get(place) ?? 0) + times);
    }
    found[i] = counts = next;
  }
  return found;
}

function drawSplits() {
  const splits = picture.splits;
  if (!splits.length) return;
  stopPlay();
  const token = shownPatch(), rows = heldBy(Math.floor(token / grid[1]), splits), columns = heldBy(token % grid[1], splits);
  const [height, width] = picture.size, top = Math.min(...rows[0].keys()), left = Math.min(...columns[0].keys()), tall = rows[0].size, wide = columns[0].size;
  const side = Math.max(tall, wide) * 1.3, y0 = top + tall / 2 - side / 2, x0 = left + wide / 2 - side / 2, scale = 288 / side;
  [...$('split-rows').children].forEach(({ canvas, held }, i) => {
    const context = canvas.getContext('2d'), { step, centre } = live.steps[i], gap = step * scale < 12 ? 0 : 1.5;
    context.fillStyle = '#8a8f96';
    context.fillRect(0, 0, 288, 288);
    context.imageSmoothingEnabled = false;
    if (live.grey) context.drawImage(live.grey, -x0 * scale, -y0 * scale, width * scale, height * scale);
    const most = Math.max(...rows[i].values()) * Math.max(...columns[i].values());
    context.globalAlpha = 0.8;
    for (const [row, times] of rows[i]) for (const [column, others] of columns[i]) {
      const y = (centre + row * step - step / 2 - y0) * scale, x = (centre + column * step - step / 2 - x0) * scale;
      context.fillStyle = css(solid[Math.round(most > 1 ? 90 + 165 * (times * others - 1) / (most - 1) : 190)]);
      context.fillRect(x + gap / 2, y + gap / 2, step * scale - gap, step * scale - gap);
    }
    context.globalAlpha = 1;
    held.textContent = `The chosen token holds ${rows[i].size} × ${columns[i].size} of these${most > 1 ? `, the middle ones up to ${most} times` : ''}.`;
  });
  splitBoard.marks.forEach(mark => {
    mark.setAttribute('visibility', 'visible');
    [['x', left / width * grid[1]], ['y', top / height * grid[0]], ['width', wide / width * grid[1]], ['height', tall / height * grid[0]]].forEach(pair => mark.setAttribute(...pair));
  });
  const inside = (start, length, limit) => Math.min(limit, start + length) - Math.max(0, start), outside = tall * wide - inside(top, tall, height) * inside(left, wide, width);
  splitBoard.canvas.hidden = true;
  $('splits-caption').textContent = `Token ${patchWords(token)} goes back to a window of ${tall} × ${wide} pixels` + (outside ? `; ${outside} of them lie outside the picture and are zero.` : '.');
}

// The windows of each split in their order: all of the first ones, then some. Where motion is not wanted, one a press.
const still = matchMedia('(prefers-reduced-motion: reduce)'), play = { timer: 0, frame: 0 };
function framesOf(splits) {
  return splits.flatMap(({ grid: [rows, columns] }, split) => {
    const count = rows * columns, slow = Math.min(8, count), later = Math.min(16, count - slow);
    return [...Array(slow).keys(), ...Array.from({ length: later }, (_, i) => slow + Math.floor((count - slow) * (i + 1) / later) - 1)].map(window => ({ split, window }));
  });
}

function drawWindow({ split, window }) {
  const { kernel, stride, padding, grid: [rows, columns] } = picture.splits[split], [height, width] = split ? picture.splits[split - 1].grid : picture.size;
  // In how many of the windows so far a row or column lies: whole rows of windows, and the begun one.
  const holds = (count, length) => Array.from({ length }, (_, at) => {
    let times = 0;
    for (let i = Math.max(0, Math.ceil((at + padding - kernel + 1) / stride)); i < count && i * stride - padding <= at; i++) times++;
    return times;
  });
  const row = Math.floor(window / columns), column = window % columns, above = holds(row, height), below = holds(row + 1, height), all = holds(columns, width), begun = holds(column + 1, width);
  const counts = new Float32Array(height * width);
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) counts[y * width + x] = above[y] * all[x] + (below[y] - above[y]) * begun[x];
  paint(splitBoard.canvas, counts, height, width, Math.ceil(kernel / stride) ** 2);
  splitBoard.canvas.hidden = false;
  for (const mark of splitBoard.marks) {
    const place = { x: (column * stride - padding) / width * grid[1], y: (row * stride - padding) / height * grid[0], width: kernel / width * grid[1], height: kernel / height * grid[0] };
    for (const [name, value] of Object.entries(place)) mark.setAttribute(name, value);
    mark.setAttribute('visibility', 'visible');
  }
  const of = split ? 'tokens' : 'pixels';
  $('splits-caption').textContent = `Split ${split + 1} of ${picture.splits.length}, window ${(window + 1).toLocaleString('en')} of ${(rows * columns).toLocaleString('en')}: ${kernel} × ${kernel} ${of} become one token. Windows lie ${stride} apart and overlap: the brighter a place, the more of them hold it.`;
}

function stopPlay() {
  clearTimeout(play.timer);
  Object.assign(play, { timer: 0, frame: 0 });
  $('play').textContent = still.matches ? 'Next window' : 'Play the windows';
}

function playOn() {
  const frames = framesOf(picture.splits);
  if (play.frame === frames.length) { drawSplits(); return; }
  drawWindow(frames[play.frame++]);
  if (still.matches) return;
  play.timer = setTimeout(playOn, 140);
  $('play').textContent = 'Stop';
}
$('play').addEventListener('click', () => {
  if (play.timer) drawSplits(); else playOn();
  say($('splits-caption').textContent);
});
still.addEventListener('change', () => { if (picture?.splits.length) drawSplits(); });

// The picture without its colours.
function greyed(image) {
  const canvas = make('canvas', { width: image.naturalWidth, height: image.naturalHeight }), context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height), values = pixels.data;
  for (let i = 0; i < values.length; i += 4) values[i] = values[i + 1] = values[i + 2] = 0.3 * values[i] + 0.59 * values[i + 1] + 0.11 * values[i + 2];
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// A picture of those the page holds.
async function show(index) {
  picture = data.pictures[index];
  const wanted = picture;
  grid = picture.grid;
  tokens = grid[0] * grid[1];
  live = {};
  const aspect = picture.size[1] / picture.size[0];
  document.documentElement.style.setProperty('--aspect', aspect.toFixed(4));
  document.documentElement.classList.toggle('long', aspect > 2.2);
  Object.assign(state, { patch: Math.floor(grid[0] / 2) * grid[1] + Math.floor(grid[1] / 2), hover: null });
  for (const board of boards) board.show(picture, grid);
  showAnswer();
  showLens();
  showSplits();
  await Promise.all([showAttributions(), showAttention(), showLedger(), showPosition()]);
  if (picture !== wanted) return;
  for (const board of boards) if (board.cells) board.place(state.patch);
  if (picture.splits.length) {
    await splitBoard.picture.decode();
    if (picture !== wanted) return;
    live.grey = greyed(splitBoard.picture);
  }
  drawPatch();
  document.documentElement.dataset.ready = index;
}

if (data.pictures.length > 1) {
  $('picker').hidden = false;
  $('picker').append(...data.pictures.map((one, i) => {
    const input = make('input', { type: 'radio', name: 'picture', className: 'visually-hidden', checked: i === 0 });
    input.addEventListener('change', () => show(i));
    return make('label', { title: one.name }, input, make('img', { src: one.picture, alt: '' }), make('span', {}, bdi(one.name.split(/[\\/]/).pop() || one.name)));
  }));
}
if (data.pictures.length) show(0);
