"use strict";
// Searches and sorts the cards.
const tools = document.getElementById("tools");
const list = document.getElementById("cards");
const cards = [...list.children].filter((card) => card.dataset.name !== undefined);
const arrange = () => {
  const wanted = tools.elements.search.value.trim().toLowerCase();
  const by = tools.elements.sort.value;
  const order = (a, b) =>
    by === "name"
      ? a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true })
      : Number(b.dataset[by]) - Number(a.dataset[by]);
  for (const card of cards) card.hidden = !card.textContent.toLowerCase().includes(wanted);
  list.append(...[...cards].sort(order));
  const shown = cards.filter((card) => !card.hidden).length;
  document.getElementById("count").textContent = `${shown} of ${cards.length} shown`;
};
tools.hidden = false;
tools.addEventListener("input", arrange);
tools.addEventListener("submit", (event) => event.preventDefault());
arrange();
