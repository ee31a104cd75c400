"use strict";
// Sorts, filters and pages the table of queries. The rows are the page's own: they are moved about, never made
// from text, so nothing that the data says can become markup. Without this script the table stands there whole.
{
  const table = document.getElementById("queries");
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  const part = (name) => document.getElementById(name);
  const chips = [...document.querySelectorAll("#chips button")];
  const order = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  // Reads of its row what is asked for, when it is first asked for: with thousands of rows the page is there sooner.
  class Row {
    #values = [];
    #text;
    constructor(element) {
      this.element = element;
      this.is = element.dataset.is.split(" ");
    }
    get text() {
      return (this.#text ??= this.element.textContent.toLowerCase());
    }
    get expected() {
      return [...this.element.querySelectorAll(".expected b")].map((label) => label.textContent);
    }
    first(side) {
      return this.element.querySelector(`.${side} b`).textContent;
    }
    value(column) {
      return (this.#values[column] ??= this.#read(this.element.cells[column]));
    }
    #read(cell) {
      if (!("value" in cell.dataset)) return cell.textContent.trim();
      return cell.dataset.value === "" ? null : Number(cell.dataset.value); // empty: not found
    }
  }
  const rows = [...body.rows].map((element) => new Row(element));

  const everything = { show: "all", words: [], label: "", pair: null };
  let filter = { ...everything };
  let sorted = headers.findIndex((header) => header.hasAttribute("aria-sort"));
  let direction = 1;
  let page = 0;
  let found = rows;

  const passes = (row) =>
    (filter.show === "all" || row.is.includes(filter.show)) &&
    (!filter.label || row.expected.includes(filter.label)) &&
    (!filter.pair || (row.expected[0] === filter.pair.expected && row.first(filter.pair.side) === filter.pair.found)) &&
    filter.words.every((word) => row.text.includes(word));

  const compare = (left, right) => {
    const a = left.value(sorted), b = right.value(sorted);
    if (a === null || b === null) return (a === null) - (b === null); // not found stands last in both directions
    return direction * (typeof a === "number" ? a - b : order.compare(a, b));
  };

  const draw = () => {
    const size = Number(part("size").value) || Infinity;
    const last = Math.max(0, Math.ceil(found.length / size) - 1);
    page = Math.min(page, last);
    const start = page ? page * size : 0;
    const some = found.slice(start, start + size);
    body.replaceChildren(...some.map((row) => row.element));
    const total = rows.length.toLocaleString("en");
    const those = found.length === rows.length ? total : `${found.length.toLocaleString("en")} of ${total}`;
    const range = some.length < found.length ? `, ${start + 1} to ${start + some.length} shown` : "";
    part("count").textContent = `${those} ${rows.length === 1 ? "query" : "queries"}${range}`;
    part("pages").hidden = last === 0;
    part("previous").disabled = page === 0;
    part("next").disabled = page === last;
  };

  const update = () => {
    for (const chip of chips) chip.setAttribute("aria-pressed", chip.dataset.show === filter.show);
    const { pair } = filter;
    part("pair").hidden = !pair;
    part("pair").textContent = pair ? `${pair.side}: ${pair.expected} taken for ${pair.found} ×` : "";
    part("clear").hidden = filter.show === "all" && !filter.words.length && !filter.label && !pair;
    found = rows.filter(passes).sort(compare);
    page = 0;
    draw();
  };

  const set = (changes) => {
    filter = { ...filter, ...changes };
    update();
  };
  const reset = (changes = {}) => {
    part("words").value = "";
    if (part("label")) part("label").value = "";
    filter = everything;
    set(changes);
  };

  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      direction = sorted === column ? -direction : 1;
      sorted = column;
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      update();
    });
  });
  for (const chip of chips) chip.addEventListener("click", () => set({ show: chip.dataset.show }));
  part("words").addEventListener("input", (event) => set({ words: event.target.value.toLowerCase().split(/\s+/).filter(Boolean) }));
  part("label")?.addEventListener("change", (event) => set({ label: event.target.value }));
  part("pair").addEventListener("click", () => set({ pair: null }));
  part("clear").addEventListener("click", () => reset());
  part("size").addEventListener("change", draw);
  const turn = (step) => {
    page += step;
    draw();
    part("controls").scrollIntoView();
  };
  part("previous").addEventListener("click", () => turn(-1));
  part("next").addEventListener("click", () => turn(1));
  for (const link of document.querySelectorAll("a[data-show]")) link.addEventListener("click", () => reset({ show: link.dataset.show }));
  for (const link of document.querySelectorAll("a[data-found]")) link.addEventListener("click", () => reset({ pair: { ...link.dataset } }));

  part("words").value = ""; // a browser may bring back what was typed before the page was loaded again
  if (part("label")) part("label").value = "";
  part("controls").hidden = false;
  update();
  table.classList.add("ready");
}
