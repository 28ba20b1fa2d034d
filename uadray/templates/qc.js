// Draws the pictures of the rows in sight, lets those go that are far away, and filters the rows.
(() => {
  const table = document.getElementById("scans");
  if (!table) return;
  const rows = [...table.tBodies[0].rows];
  const frame = table.closest(".scroll");
  const mean = JSON.parse(document.getElementById("cohort-shares").textContent);
  const SIDES = [["L", "R", "A"], ["L", "R", "S"], ["P", "A", "S"]];
  const NAMES = ["axial", "coronal", "sagittal"];

  const svg = (name, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const letter = (side, text) => {
    const made = document.createElement("i");
    made.className = side;
    made.textContent = text;
    return made;
  };

  const drawPlane = (plane, k, id) => {
    const [width, height] = plane.box;
    const drawn = svg(
      "svg",
      {
        viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img",
        "aria-label": `${id}, ${NAMES[k]} plane ${plane.index}`,
      },
      svg("image", { href: plane.png, width, height, preserveAspectRatio: "none" }),
      svg("path", { class: "brain", d: plane.brain }),
      svg("path", { class: "lesion", d: plane.lesion }),
    );
    const tile = document.createElement("div");
    tile.className = "tile";
    tile.style.width = `calc(${plane.size[0]} * var(--mm))`;
    tile.style.height = `calc(${plane.size[1]} * var(--mm))`;
    const [l, r, a] = SIDES[k];
    tile.append(drawn, letter("l", l), letter("r", r), letter("a", a));
    return tile;
  };

  const drawHistogram = (shares) => {
    const top = Math.max(...shares, ...mean);
    const y = (share) => (40 - (38 * share) / top).toFixed(1);
    const bars = shares.map((share, k) => `M${k} 40V${y(share)}h1V40z`).join("");
    const line = mean.map((share, k) => `${k ? "L" : "M"}${k + 0.5} ${y(share)}`).join("");
    return svg(
      "svg",
      { viewBox: "0 0 32 40", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("path", { class: "bars", d: bars }),
      svg("path", { class: "mean", d: line }),
    );
  };

  const draw = (row) => {
    const place = row.querySelector(".planes div");
    if (place.childElementCount) return;
    const held = JSON.parse(document.getElementById(`picture-${row.dataset.row}`).textContent);
    place.append(...held.planes.map((plane, k) => drawPlane(plane, k, row.dataset.id)));
    row.querySelector(".shares div").append(drawHistogram(held.shares));
  };
  const clear = (row) => {
    for (const place of row.querySelectorAll(".planes div, .shares div")) place.replaceChildren();
  };
  // Two of the frame's heights either way, so that slow scrolling meets no empty row.
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) (entry.isIntersecting ? draw : clear)(entry.target);
    },
    { root: frame, rootMargin: "100% 0px" },
  );
  for (const row of rows) watcher.observe(row);
  addEventListener("beforeprint", () => rows.filter((row) => !row.hidden).forEach(draw));

  const form = document.getElementById("choose");
  const count = document.getElementById("count");
  const list = document.getElementById("ids");
  const words = new Map(
    rows.map((row) => [row, `${row.cells[0].textContent} ${row.cells[1].textContent}`.toLowerCase()]),
  );
  const apply = () => {
    const { search, show, part, scanner } = form.elements;
    const asked = search.value.trim().toLowerCase();
    const shown = [];
    for (const row of rows) {
      row.hidden = !(
        words.get(row).includes(asked) &&
        (show.value === "all" || (show.value === "flagged" ? row.dataset.flags > 0 : row.dataset.doubts > 0)) &&
        (!part || part.value === "" || row.dataset.part === part.value) &&
        (!scanner || scanner.value === "" || row.dataset.scanner === scanner.value.slice(1))
      );
      if (!row.hidden) shown.push(row.dataset.id);
    }
    count.textContent = `${shown.length} of ${rows.length} scans shown`;
    list.textContent = shown.join("\n");
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.lines.addEventListener("input", (event) =>
    table.classList.toggle("bare", !event.target.checked));
  form.elements.large.addEventListener("input", (event) =>
    table.classList.toggle("large", event.target.checked));
  form.hidden = false;
  apply();
})();
