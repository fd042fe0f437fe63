// Columns of words to the left, columns of numbers to the right; and what scrolls can be reached by keyboard.
document.addEventListener("DOMContentLoaded", () => {
  const number = /^[-+−–±%,.:\d\s[\]()e∞]*$|^(NaN|nan|None|inf)$/;
  for (const table of document.querySelectorAll("table.dataframe")) {
    const rows = [...table.querySelectorAll("tbody tr")].map(row => [...row.children].reverse());
    const heads = [...table.querySelectorAll("thead tr")].map(row => [...row.children].reverse());
    // Counted from the right: a cell of an index may span rows at the left.
    for (let k = 0; k < Math.max(0, ...rows.map(row => row.length)); k++) {
      const cells = rows.flatMap(row => row[k] ?? []);
      if (cells.every(cell => number.test(cell.textContent.trim()))) continue;
      for (const cell of [...cells, ...heads.flatMap(head => head[k]?.colSpan === 1 ? head[k] : [])])
        cell.classList.add("words");
    }
  }
  for (const box of document.querySelectorAll(".cell_output .output, .cell_output pre, .cell_input pre, .pst-scrollable-table-container"))
    if (box.scrollWidth > box.clientWidth && !box.hasAttribute("tabindex")) box.tabIndex = 0;
});
