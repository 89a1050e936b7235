// Tables that a click on a heading sorts: first the largest numbers, or A before B; then the other way round.
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column], number = cell.querySelector('data');
    return number ? Number(number.value) : cell.textContent.trim();
  };
  heads.forEach((head, column) => {
    const button = make('button', { type: 'button' }, head.textContent);
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const rows = [...body.rows], numeric = rows.some(row => typeof value(row, column) === 'number');
      const before = head.getAttribute('aria-sort');
      const up = before ? before === 'descending' : !numeric;
      const missing = numeric ? -Infinity : '';
      const key = row => { const v = value(row, column); return numeric && typeof v !== 'number' ? missing : v; };
      rows.sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        const order = numeric ? (x > y) - (x < y) : x.localeCompare(y, undefined, { numeric: true });
        return up ? order : -order;
      });
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      body.append(...rows);
    });
  });
}
