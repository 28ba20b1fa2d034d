"use strict";
// Unpacks NiiVue and the volumes, draws them, and lays outlines, strip and controls around them.
(async () => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("case").textContent);
  const controls = find("controls");
  const field = (name) => controls.elements[name];
  const value = ({ low, slope }, level) => low + slope * level;
  const short = (number) => String(Number(number.toPrecision(3)));

  const unpack = async (id) => {
    const text = atob(find(id).textContent.trim());
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    find(id).remove();
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  };

  const fail = (text) => {
    find("loading").hidden = true;
    find("trouble").hidden = false;
    find("trouble").textContent = text;
  };
  if (typeof DecompressionStream === "undefined" || !document.createElement("canvas").getContext("webgl2")) {
    fail("The pictures need WebGL 2 and a browser of 2023 or later; the figures below do not.");
    return;
  }

  // The policy of this page runs a script by its digest alone, and NiiVue's is among those.
  const code = document.createElement("script");
  code.textContent = new TextDecoder().decode(await unpack("niivue"));
  document.head.append(code);
  const { Niivue, NVImage } = window.niivue;

  const read = async (name, colours) => {
    const buffer = await unpack(`volume-${name}`);
    const { low, slope } = data[name];
    const ends = [low, value(data[name], 255)];
    return NVImage.new(buffer, `${name}.nii`, colours, 1, null, ends[0], ends[1]);
  };
  const [across, deep, tall] = data.shape;
  const scores = data.anomaly;
  const frozen = data.threshold === null ? null : Math.round((data.threshold - scores.low) / scores.slope + 0.5);
  const top = Math.max(...data.slices);

  // ---- NiiVue
  const crosshair = 0.5;
  const view = new Niivue({
    logLevel: "error",
    loadingText: "",
    dragAndDropEnabled: false,
    multiplanarShowRender: 1,
    multiplanarLayout: 2,
    multiplanarPadPixels: 6,
    showAllOrientationMarkers: true,
    backColor: [0, 0, 0, 1],
    fontColor: [0.85, 0.87, 0.9, 1],
    crosshairColor: [0.45, 0.85, 0.6, 0.7],
    crosshairWidth: crosshair,
    crosshairWidthUnit: "mm",
    crosshairGap: 5,
    clipPlaneColor: [1, 1, 1, 0],
    isForceMouseClickToVoxelCenters: true,
    fontMinPx: 12,
  });
  const gl = find("gl");
  await view.attachToCanvas(gl, false);
  // matplotlib's inferno, as the report's heat maps; what is below the threshold is not drawn.
  view.addColormap("scores", {
    R: [0, 66, 147, 221, 252, 252], G: [0, 10, 38, 81, 165, 255], B: [4, 104, 103, 58, 10, 164],
    A: [0, 255, 255, 255, 255, 255], I: [0, 51, 102, 153, 204, 255],
  });
  // Another hue than the scores have: how far the members of an ensemble are apart.
  view.addColormap("spread", {
    R: [0, 12, 20, 90, 190, 255], G: [0, 60, 110, 180, 235, 255], B: [0, 90, 140, 170, 190, 240],
    A: [0, 120, 255, 255, 255, 255], I: [0, 26, 102, 153, 204, 255],
  });
  const scan = await read("scan", "gray");
  const map = await read("anomaly", "scores");
  // Colours from 0 on, whatever the threshold; they begin at it where scores go below 0.
  map.colormapType = scores.low < 0 ? 0 : 2;
  const plain = { img: scan.img, levels: data.scan };
  const other = data.reconstruction && { img: (await read("reconstruction", "gray")).img, levels: data.reconstruction };
  const spread = data.spread && (await read("spread", "spread"));
  const labels = find("volume-labels") && new Uint8Array(await unpack("volume-labels")).subarray(352);
  view.addVolume(scan);
  view.addVolume(map);
  if (spread) {
    spread.opacity = 0;
    view.addVolume(spread);
  }
  find("loading").hidden = true;

  // ---- Where we are
  const place = () => data.shape.map((n, axis) => Math.min(n - 1, Math.max(0, Math.floor(view.scene.crosshairPos[axis] * n))));
  const go = (voxel) => {
    view.scene.crosshairPos = voxel.map((k, axis) => (Math.min(data.shape[axis] - 1, Math.max(0, k)) + 0.5) / data.shape[axis]);
    draw();
  };
  const step = (axis, by) => go(place().map((k, a) => (a === axis ? k + by : k)));
  const index = ([x, y, z]) => x + across * (y + deep * z);

  // ---- Outlines: voxel edges, each plane's own, over NiiVue's picture
  const lines = find("lines");
  const paths = new Map();
  const outline = (bit, axis, k) => {
    const key = `${bit} ${axis} ${k}`;
    if (paths.has(key)) return paths.get(key);
    const [u, v] = [0, 1, 2].filter((a) => a !== axis);
    const size = [data.shape[u], data.shape[v]];
    const inside = (i, j) => {
      if (i < 0 || j < 0 || i >= size[0] || j >= size[1]) return false;
      const voxel = [0, 0, 0];
      [voxel[axis], voxel[u], voxel[v]] = [k, i, j];
      return (labels[index(voxel)] & bit) > 0;
    };
    const path = new Path2D();
    for (let i = 0; i < size[0]; i++) {
      for (let j = 0; j < size[1]; j++) {
        if (!inside(i, j)) continue;
        const edges = [[i - 1, j, i, j, i, j + 1], [i + 1, j, i + 1, j, i + 1, j + 1],
          [i, j - 1, i, j, i + 1, j], [i, j + 1, i, j + 1, i + 1, j + 1]];
        for (const [a, b, x0, y0, x1, y1] of edges) {
          if (inside(a, b)) continue;
          path.moveTo(x0, y0);
          path.lineTo(x1, y1);
        }
      }
    }
    paths.set(key, path);
    return path;
  };
  const drawOutlines = () => {
    if (lines.width !== gl.width || lines.height !== gl.height) [lines.width, lines.height] = [gl.width, gl.height];
    const pen = lines.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, lines.width, lines.height);
    const shown = [[2, "truth", "#56b4e9", 3.2], [1, "proposal", "#ff8c00", 1.6]].filter(([, name]) => field(name)?.checked);
    if (!labels || !shown.length) return;
    const ratio = window.devicePixelRatio || 1;
    view.screenSlices.forEach((tile, number) => {
      const axis = [2, 1, 0][tile.axCorSag];
      if (axis === undefined || !Number.isFinite(tile.sliceFrac)) return;
      const [u, v] = [0, 1, 2].filter((a) => a !== axis);
      const [left, upper, width, height] = tile.leftTopWidthHeight;
      const at = (f) => [left + f * width, upper + f * height];
      const [a, b] = [at(0.25), at(0.75)];
      const [p, q] = [a, b].map(([x, y]) => view.screenXY2TextureFrac(x, y, number, false));
      const scale = [u, v].map((side, i) => (b[i] - a[i]) / ((q[side] - p[side]) * data.shape[side]));
      const shift = [u, v].map((side, i) => a[i] - scale[i] * p[side] * data.shape[side]);
      if (![...scale, ...shift].every(Number.isFinite)) return;
      const k = Math.min(data.shape[axis] - 1, Math.floor(tile.sliceFrac * data.shape[axis]));
      pen.save();
      pen.beginPath();
      pen.rect(Math.min(left, left + width), upper, Math.abs(width), height);
      pen.clip();
      for (const [bit, , colour, wide] of shown) {
        const path = new Path2D();
        path.addPath(outline(bit, axis, k), new DOMMatrix([scale[0], 0, 0, scale[1], shift[0], shift[1]]));
        pen.lineCap = "square";
        for (const [style, extra] of [["rgba(0, 0, 0, .55)", 1.4], [colour, 0]]) {
          pen.strokeStyle = style;
          pen.lineWidth = (wide + extra) * ratio;
          pen.stroke(path);
        }
      }
      pen.restore();
    });
  };

  // ---- The strip of slice scores
  const strip = find("strip");
  const cells = strip.firstElementChild;
  const least = Math.min(0, ...data.slices);
  const drawStrip = () => {
    const ratio = window.devicePixelRatio || 1;
    const { width, height } = strip.getBoundingClientRect();
    [cells.width, cells.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    const pen = cells.getContext("2d");
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
    const [wide, high] = [cells.width / tall, cells.height - 9 * ratio];
    const span = Math.max(top, data.threshold ?? top) - least || 1;
    const level = (score) => high - ((score - least) / span) * (high - 4 * ratio);
    data.slices.forEach((score, z) => {
      pen.fillStyle = data.threshold !== null && score > data.threshold ? colour("accent") : colour("bar");
      pen.fillRect(z * wide, level(score), Math.max(1, wide - ratio * (wide > 4 * ratio)), high - level(score));
    });
    for (const [name, row] of [["proposal", 0], ["truth", 4]]) {
      pen.fillStyle = colour(name === "truth" ? "truth" : "found");
      for (const z of data[name]) pen.fillRect(z * wide, high + (1 + row) * ratio, Math.ceil(wide), 3 * ratio);
    }
    pen.strokeStyle = colour("ink");
    if (data.threshold !== null) {
      pen.setLineDash([5 * ratio, 4 * ratio]);
      pen.lineWidth = ratio;
      pen.beginPath();
      pen.moveTo(0, level(data.threshold));
      pen.lineTo(cells.width, level(data.threshold));
      pen.stroke();
      pen.setLineDash([]);
    }
    const z = place()[2];
    pen.lineWidth = 2 * ratio;
    pen.strokeRect(z * wide, ratio, Math.max(wide, 3 * ratio), cells.height - 2 * ratio);
    const set = (name, text) => strip.setAttribute(`aria-${name}`, text);
    set("valuemin", 1);
    set("valuemax", tall);
    set("valuenow", z + 1);
    set("valuetext", `slice ${z + 1} of ${tall}, highest score ${short(data.slices[z])}`);
  };
  const pick = (event) => {
    const { left, width } = strip.getBoundingClientRect();
    const [x, y] = place();
    go([x, y, Math.floor(((event.clientX - left) / width) * tall)]);
  };
  strip.addEventListener("pointerdown", (event) => {
    strip.setPointerCapture(event.pointerId);
    pick(event);
  });
  strip.addEventListener("pointermove", (event) => {
    if (strip.hasPointerCapture(event.pointerId)) pick(event);
  });

  // ---- What the crosshair points at
  const tell = () => {
    const voxel = place();
    const mm = view.frac2mm(view.scene.crosshairPos, 0, true);
    const here = index(voxel);
    const [axis, first, stride] = data.file;
    const image = field("reconstruction")?.checked ? other : plain;
    const entries = [
      ["slice", `${voxel[2] + 1} of ${tall}`],
      ["in the file", `index ${first + stride * voxel[2] * data.factor} of axis ${axis}`],
      ["position", `${[...mm].slice(0, 3).map((x) => x.toFixed(1)).join(", ")} mm`],
      [image === plain ? "intensity" : "reconstruction", short(value(image.levels, image.img[here]))],
      ["score", short(value(scores, map.img[here]))],
      ...(spread ? [["spread", short(value(data.spread, spread.img[here]))]] : []),
    ];
    find("where").replaceChildren(
      ...entries.flatMap(([name, text]) => {
        const strong = document.createElement("b");
        strong.textContent = text;
        return [`${name} `, strong, "   "];
      }),
    );
  };

  // ---- Each picture of NiiVue's brings ours
  const paint = view.drawScene.bind(view);
  let waiting = false;
  view.drawScene = () => {
    const result = paint();
    if (!waiting) {
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        drawOutlines();
        drawStrip();
        tell();
      });
    }
    return result;
  };
  const draw = () => view.drawScene();

  // ---- Controls
  const applyMap = () => {
    const level = Number(field("threshold").value);
    const least = value(scores, level - 0.5);
    map.cal_min = least;
    map.cal_max = value(scores, 255);
    const opacity = Number(field("opacity").value) / 100;
    const instead = Boolean(field("spread")?.checked);
    map.opacity = field("map").checked && !instead ? opacity : 0;
    if (spread) spread.opacity = instead ? opacity : 0;
    find("opacity-text").textContent = `${field("opacity").value} %`;
    find("threshold-text").textContent = short(level === frozen ? data.threshold : least) + (level === frozen ? " (frozen)" : "");
    document.querySelector(".ramp i").style.left = `${Math.max(0, (100 * (level - 0.5)) / 255)}%`;
    // NiiVue counts the layers that are seen alone, and one takes the place of the other.
    if (spread) view.updateGLVolume();
    else view.refreshLayers(map, 1);
    draw();
  };
  const applyImage = () => {
    const image = field("reconstruction")?.checked ? other : plain;
    if (scan.img !== image.img) {
      scan.img = image.img;
      [scan.hdr.scl_inter, scan.hdr.scl_slope] = [image.levels.low, image.levels.slope];
      [scan.cal_min, scan.cal_max] = [image.levels.low, value(image.levels, 255)];
      view.updateGLVolume();
    }
    draw();
  };
  const apply = {
    map: applyMap,
    opacity: applyMap,
    threshold: applyMap,
    reconstruction: applyImage,
    spread: applyMap,
    proposal: draw,
    truth: draw,
    crosshair: () => view.setCrosshairWidth(field("crosshair").checked ? crosshair : 0),
    radiological: () => view.setRadiologicalConvention(field("radiological").checked),
    cut: () => view.setClipPlane(field("cut").checked ? [0.1, 0, 90] : [2, 0, 0]),
    view: () => view.setSliceType([3, 0, 1, 2, 4][Number(field("view").value)]),
  };
  let last = 0;
  controls.addEventListener("input", (event) => {
    // A slider moves faster than large volumes are drawn: the last of a frame's events counts.
    cancelAnimationFrame(last);
    const change = apply[event.target.name];
    if (event.target.type === "range") last = requestAnimationFrame(change);
    else change?.();
  });
  controls.addEventListener("submit", (event) => event.preventDefault());
  const button = field("frozen");
  const reset = frozen ?? 230; // without a frozen threshold the highest tenth of the levels is seen at first
  button.textContent = frozen === null ? "Back to the start" : `Frozen threshold ${short(data.threshold)}`;
  const freeze = () => {
    field("threshold").value = reset;
    applyMap();
  };
  button.addEventListener("click", freeze);
  if (spread) find("spread-text").textContent = `to ${short(value(data.spread, 255))}`;
  find("low").textContent = short(scores.low);
  find("high").textContent = short(value(scores, 255));

  // ---- Keyboard
  const toggle = (name) => {
    const box = field(name);
    if (!box) return;
    box.checked = !box.checked;
    apply[name]();
  };
  const keys = {
    m: () => toggle("map"), p: () => toggle("proposal"), t: () => toggle("truth"),
    r: () => toggle("reconstruction"), s: () => toggle("spread"), x: () => toggle("crosshair"), l: () => toggle("radiological"),
    c: () => toggle("cut"), n: () => go(data.peak), f: () => freeze(),
    "+": () => nudge(1), "=": () => nudge(1), "-": () => nudge(-1),
  };
  const nudge = (by) => {
    field("threshold").value = Number(field("threshold").value) + by;
    applyMap();
  };
  const arrows = {
    ArrowUp: [2, 1], ArrowDown: [2, -1], PageUp: [2, 5], PageDown: [2, -5], ArrowLeft: [0, -1], ArrowRight: [0, 1],
  };
  window.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inField = event.target.matches?.("input[type=range], input[type=radio]");
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (arrows[key]) {
      if (inField) return;
      let [axis, by] = arrows[key];
      if (event.shiftKey && axis === 2) axis = 1;
      if (event.target === strip && axis === 0) axis = 2;
      step(axis, by);
    } else if (event.target === strip && (key === "Home" || key === "End")) {
      go([...place().slice(0, 2), key === "Home" ? 0 : tall - 1]);
    } else if (keys[key]) {
      keys[key]();
    } else if (key >= "1" && key <= "5" && key.length === 1) {
      controls.querySelectorAll("[name=view]")[Number(key) - 1].checked = true;
      apply.view();
    } else {
      // NiiVue's own keys are not those that this page names.
      if (event.target === gl && key !== "Tab") event.stopPropagation();
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }, true);
  for (const kind of ["keyup", "keypress"]) gl.addEventListener(kind, (event) => event.stopImmediatePropagation(), true);

  window.addEventListener("resize", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  freeze();
  go(data.peak);
  document.documentElement.dataset.ready = "yes";
})();
