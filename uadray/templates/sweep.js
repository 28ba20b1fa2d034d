"use strict";
// The charts of a sweep. Rows that are selected and trials that pass the brushes are the same
// everywhere: in the leaderboard, the parallel coordinates and every other chart.
{
  const { parallel, axes, charts } = JSON.parse(document.getElementById("sweep-data").textContent);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const rows = all(".leaderboard tbody tr");
  const [readout] = all(".readout");
  const [clearFilter] = all(".clear-filter");
  const [clearPicked] = all(".clear-picked");
  const views = [];
  const picked = new Set();
  let passing = null;

  const axis = {
    labelColor: "var(--ink)", titleColor: "var(--ink)", gridColor: "var(--line)", gridOpacity: 0.7,
    domainColor: "var(--muted)", tickColor: "var(--muted)", titleFontWeight: 400, labelFontSize: 11,
  };
  const config = {
    background: null, font: "system-ui, sans-serif", axis, view: { stroke: null },
    legend: { labelColor: "var(--ink)", titleColor: "var(--ink)", labelFontSize: 11, symbolSize: 60 },
  };
  // The papers' Dice_D and Dice_S with real subscripts, in tooltips and in the charts' text.
  const plain = document.createElement("span");
  const sub = (text) => {
    plain.textContent = text;
    return plain.innerHTML.replace(/Dice_([DS])/g, "Dice<sub>$1</sub>");
  };
  const subscripts = (element) => {
    for (const text of element.querySelectorAll("text, tspan")) {
      if (text.childElementCount || !/Dice_[DS]/.test(text.textContent)) continue;
      text.innerHTML = sub(text.textContent).replace(
        /<sub>(.)<\/sub>([^<]*)/g,
        (_, kind, rest) => `<tspan dy="0.3em" font-size="72%">${kind}</tspan><tspan dy="-0.216em">${rest || "\u200b"}</tspan>`,
      );
    }
  };
  const options = { ast: true, renderer: "svg", actions: false, defaultStyle: false, config, tooltip: { sanitize: sub } };

  const follow = (view) => view
    .signal("picked", [...picked]).signal("passing", passing && [...passing]).runAsync();
  const show = () => {
    for (const row of rows) {
      const trial = Number(row.dataset.trial);
      row.hidden = passing !== null && !passing.has(trial);
      row.classList.toggle("picked", picked.has(trial));
    }
    for (const box of all(".pick")) box.checked = picked.has(Number(box.dataset.trial));
    const listed = rows.filter((row) => !row.hidden).length;
    const chosen = picked.size ? `, ${picked.size} selected` : "";
    readout.textContent = `${passing ? `${listed} of ${rows.length}` : rows.length} trials${chosen}.`;
    clearFilter.disabled = passing === null;
    clearPicked.disabled = !picked.size;
    views.forEach(follow);
  };
  const pick = (trial, on = !picked.has(trial)) => {
    if (on) picked.add(trial);
    else picked.delete(trial);
    show();
  };
  const draw = async (element, spec) => {
    const { view } = await vegaEmbed(element, spec, options);
    view.addEventListener("click", (_, item) => {
      const trial = item?.datum?.trial;
      if (Number.isInteger(trial) && trial >= 0) pick(trial);
    });
    views.push(view);
    await follow(view);
    subscripts(element);
    new MutationObserver(() => subscripts(element)).observe(element, { childList: true, subtree: true });
    return view;
  };

  for (const box of all(".pick")) {
    box.addEventListener("change", () => pick(Number(box.dataset.trial), box.checked));
  }
  all(".pick-all")[0].addEventListener("change", (event) => {
    for (const row of rows.filter((one) => !one.hidden)) {
      if (event.target.checked) picked.add(Number(row.dataset.trial));
      else picked.delete(Number(row.dataset.trial));
    }
    show();
  });
  clearPicked.addEventListener("click", () => {
    picked.clear();
    all(".pick-all")[0].checked = false;
    show();
  });
  for (const list of all("select.cohort")) {
    const choose = () => {
      for (const cell of all(".leaderboard [data-cohort]")) cell.hidden = cell.dataset.cohort !== list.value;
    };
    list.addEventListener("change", choose);
    choose();
  }

  // Brushes and sliders are two hands on the same signals.
  const brush = (view) => {
    const box = document.getElementById("parallel").parentElement;
    const sides = all(".sliders fieldset");
    const signal = (n) => `brush${n}`;
    const text = ({ ticks, domain, digits }, at) => {
      if (domain) return (domain[0] + at * (domain[1] - domain[0])).toFixed(digits);
      return ticks.reduce((a, b) => (Math.abs(a.y - at) <= Math.abs(b.y - at) ? a : b)).text;
    };
    const move = (n, range) => {
      const ends = range ? [Math.min(...range), Math.max(...range)] : [0, 1];
      sides[n].querySelectorAll("input").forEach((input, k) => {
        input.value = ends[k];
        input.nextElementSibling.textContent = text(axes[n], ends[k]);
        input.setAttribute("aria-valuetext", text(axes[n], ends[k]));
      });
    };
    const filter = () => {
      const brushed = axes.some((_, n) => view.signal(signal(n)));
      passing = brushed ? new Set(view.data("trials").filter((d) => d.passes).map((d) => d.trial)) : null;
      show();
    };
    axes.forEach((_, n) => {
      move(n, null);
      view.addSignalListener(signal(n), (_name, range) => {
        move(n, range);
        view.runAfter(filter);
      });
      const inputs = [...sides[n].querySelectorAll("input")];
      inputs.forEach((input) => input.addEventListener("input", () => {
        const ends = inputs.map((one) => Number(one.value));
        const whole = Math.min(...ends) <= 0 && Math.max(...ends) >= 1;
        view.signal(signal(n), whole ? null : ends).runAsync();
      }));
    });
    clearFilter.addEventListener("click", () => {
      axes.forEach((_, n) => view.signal(signal(n), null));
      view.runAsync();
    });
    if (matchMedia("(any-pointer: coarse)").matches) view.signal("grip", 40);
    // A finger on an axis brushes; anywhere else it scrolls.
    box.addEventListener("touchstart", (event) => {
      if (event.target.closest("[class*='role-mark hit']")) event.preventDefault();
    }, { passive: false });
    const { left, right } = parallel.padding;
    const fit = () => {
      const width = Math.max(box.clientWidth - left - right - 2, 86 * (axes.length - 1));
      if (box.clientWidth && Math.abs(width - view.width()) > 1) view.width(width).runAsync();
    };
    fit();
    new ResizeObserver(fit).observe(box);
  };

  (async () => {
    if (parallel) brush(await draw(document.getElementById("parallel"), parallel));
    for (const [id, spec] of Object.entries(charts)) await draw(document.getElementById(id), spec);
    document.documentElement.dataset.charts = "drawn";
  })();
}
