"use strict";
// Sorts the tables: a button in each head cell, the order given by aria-sort.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const read = (row, column) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const order = now ? (now === "ascending" ? "descending" : "ascending") : head.dataset.first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const known = (row) => read(row, column) !== "";
      body.append(
        ...[...body.rows].sort((a, b) =>
          known(a) !== known(b)
            ? known(b) - known(a)
            : sign * compare(read(a, column), read(b, column)),
        ),
      );
    });
  });
}

// Parallel coordinates: labels of settings filter, pointing or the list picks one trial.
for (const figure of document.querySelectorAll("figure.parallel")) {
  const lines = [...figure.querySelectorAll("polyline")];
  const ticks = [...figure.querySelectorAll(".tick")];
  const list = figure.querySelector("select");
  const svg = figure.querySelector("svg");
  const readout = figure.querySelector(".readout");
  const places = lines.map((line) => line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number)));
  const keys = lines.map((line) => line.dataset.keys.split(" "));
  let passing = lines.map((_, k) => k);

  // Of one axis any chosen label will do, of several axes each must.
  const filter = () => {
    const wanted = new Map();
    for (const tick of ticks.filter((one) => one.getAttribute("aria-pressed") === "true")) {
      const { axis, key } = tick.dataset;
      wanted.set(axis, [...(wanted.get(axis) ?? []), key]);
    }
    passing = lines.map((_, k) => k).filter((k) => [...wanted].every(([axis, some]) => some.includes(keys[k][axis])));
  };
  const show = (picked = list.value) => {
    const one = picked === "" ? null : Number(picked);
    const all = one === null && passing.length === lines.length;
    lines.forEach((line, k) => {
      line.classList.toggle("faded", one === null ? !passing.includes(k) : k !== one);
      line.classList.toggle("picked", k === one);
    });
    const trial = one === null ? null : lines[one].dataset;
    if (trial) readout.textContent = `${trial.label}: ${trial.text}`;
    else readout.textContent = all ? `${lines.length} trials.` : `${passing.length} of ${lines.length} trials.`;
  };
  const press = (tick, on) => tick.setAttribute("aria-pressed", String(on));
  const toggle = (tick) => {
    press(tick, tick.getAttribute("aria-pressed") !== "true");
    list.value = "";
    filter();
    show();
  };
  for (const tick of ticks) {
    tick.addEventListener("click", () => toggle(tick));
    tick.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      toggle(tick);
    });
  }
  list.addEventListener("change", () => show());
  figure.querySelector(".reset").addEventListener("click", () => {
    ticks.forEach((tick) => press(tick, false));
    list.value = "";
    filter();
    show();
  });

  // The passing line that is nearest to the pointer, within a finger's width.
  const nearest = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let [best, found] = [14, ""];
    for (const k of passing) {
      const points = places[k];
      for (let n = 1; n < points.length; n += 1) {
        const [[x0, y0], [x1, y1]] = [points[n - 1], points[n]];
        if (at.x < x0 || at.x > x1) continue;
        const distance = Math.abs(y0 + ((y1 - y0) * (at.x - x0)) / (x1 - x0) - at.y);
        if (distance < best) [best, found] = [distance, String(k)];
      }
    }
    return found;
  };
  svg.addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse" && list.value === "") show(nearest(event));
  });
  svg.addEventListener("pointerleave", () => show());
  svg.addEventListener("click", (event) => {
    if (event.target.closest(".tick")) return;
    list.value = nearest(event);
    show();
  });
}
