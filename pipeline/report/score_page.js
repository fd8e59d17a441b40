(() => {
  // --- tables sort ---
  document.querySelectorAll("table.sortable").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const was = head.getAttribute("aria-sort");
        const order = was ? (was === "descending" ? "ascending" : "descending") : column ? "descending" : "ascending";
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const value = (row) => parseFloat(row.cells[column].dataset.v) || 0;
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => sign * (value(a) - value(b)));
        table.tBodies[0].append(...rows);
      });
    });
  });

  // --- the contents say where one is ---
  const links = new Map([...document.querySelectorAll(".toc a")].map((a) => [a.hash.slice(1), a]));
  const headings = [...links.keys()].map((id) => document.getElementById(id));
  const follow = () => {
    const passed = headings.filter((h) => h.getBoundingClientRect().top < 120);
    const here = passed.sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top).at(-1) || headings[0];
    links.forEach((a, id) => {
      const lit = id === here.id;
      if (lit === a.hasAttribute("aria-current")) return;
      a.toggleAttribute("aria-current", lit);
      if (!lit) return;
      a.setAttribute("aria-current", "true");
      const list = a.closest("ul");
      list.scrollLeft = a.offsetLeft - list.clientWidth / 2;
    });
  };
  let waiting = false;
  window.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; follow(); });
  }, { passive: true });
  follow();

  // --- the confusion matrix ---
  const { names, cells, truth, predicted } = JSON.parse(document.getElementById("data").textContent);
  const rows = names.length - 1;
  const columns = names.length;
  const sums = { row: new Float64Array(rows), column: new Float64Array(columns) };
  const at = new Map();
  for (const [i, j, n] of cells) {
    sums.row[i] += n;
    sums.column[j] += n;
    at.set(i * columns + j, n);
  }
  const box = document.getElementById("matrix-box");
  const canvas = document.getElementById("matrix");
  const output = document.getElementById("cell");
  const context = canvas.getContext("2d");
  const font = "12px system-ui, sans-serif";
  const labelled = columns <= 64;
  let chosen = null;
  let size = 0;
  let left = 0;
  let top = 0;

  const share = (i, j) => {
    const whole = norm() === "row" ? sums.row[i] : sums.column[j];
    return whole ? (at.get(i * columns + j) || 0) / whole : 0;
  };
  const norm = () => document.querySelector("input[name=norm]:checked").value;
  const short = (name) => (name.length > 22 ? name.slice(0, 21) + "…" : name);

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    context.font = font;
    left = labelled ? 10 + Math.max(...names.map((n) => context.measureText(short(n)).width)) : 2;
    top = labelled ? 8 + 0.71 * Math.max(...names.map((n) => context.measureText(short(n)).width)) + 10 : 2;
    const room = box.clientWidth - 40 - left - (labelled ? top * 0.75 : 0);
    size = Math.max(labelled ? 15 : 3, Math.min(labelled ? 40 : 12, Math.floor(room / columns)));
    const width = left + columns * size + (labelled ? top * 0.9 : 2);
    const height = top + rows * size + 2;
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.fillStyle = colour("--track");
    context.fillRect(left, top, columns * size, rows * size);
    const gap = size > 8 ? 1 : 0;
    for (const [i, j] of cells) {
      const v = share(i, j);
      // Small shares matter too: the square root keeps one per cent visible.
      context.globalAlpha = i === j ? 0.08 + 0.92 * v : Math.sqrt(v);
      context.fillStyle = colour(i === j ? "--good" : "--bad");
      context.fillRect(left + j * size, top + i * size, size - gap, size - gap);
    }
    context.globalAlpha = 1;
    if (size >= 26) numbers(colour);
    if (labelled) labels(colour);
    if (chosen) {
      context.strokeStyle = colour("--ink");
      context.lineWidth = 2;
      context.strokeRect(left + chosen[1] * size, top + chosen[0] * size, size - gap, size - gap);
    }
  }

  function numbers(colour) {
    context.font = "10.5px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [i, j] of cells) {
      const v = share(i, j);
      if (v < 0.005) continue;
      context.fillStyle = colour((i === j ? v : Math.sqrt(v)) > 0.55 ? "--card" : "--ink");
      context.fillText(Math.round(100 * v), left + (j + 0.5) * size, top + (i + 0.5) * size);
    }
  }

  function labels(colour) {
    context.font = font;
    context.textBaseline = "middle";
    names.forEach((name, k) => {
      const lit = chosen && (chosen[0] === k || chosen[1] === k);
      context.fillStyle = colour(lit ? "--ink" : "--muted");
      if (k < rows) {
        context.textAlign = "right";
        context.fillText(short(name), left - 6, top + (k + 0.5) * size);
      }
      context.save();
      context.translate(left + (k + 0.5) * size, top - 6);
      context.rotate(-Math.PI / 4);
      context.textAlign = "left";
      context.fillText(short(name), 0, 0);
      context.restore();
    });
  }

  function choose(i, j) {
    chosen = [Math.max(0, Math.min(rows - 1, i)), Math.max(0, Math.min(columns - 1, j))];
    [i, j] = chosen;
    const n = at.get(i * columns + j) || 0;
    const part = (whole) => (whole ? (100 * n / whole).toFixed(2) : "–");
    output.textContent =
      `${truth} ${names[i]} → ${predicted} ${names[j]}: ${n.toLocaleString("en")} pixels, ` +
      `${part(sums.row[i])} % of the row, ${part(sums.column[j])} % of the column`;
    draw();
  }

  canvas.addEventListener("pointermove", (event) => {
    const j = Math.floor((event.offsetX - left) / size);
    const i = Math.floor((event.offsetY - top) / size);
    const inside = i >= 0 && j >= 0 && i < rows && j < columns;
    if (inside && !(chosen && chosen[0] === i && chosen[1] === j)) choose(i, j);
  });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [i, j] = chosen || [0, -step[1]];
    choose(i + step[0], j + step[1]);
  });
  document.querySelectorAll("input[name=norm]").forEach((input) => input.addEventListener("change", draw));
  document.addEventListener("themechange", draw);
  window.addEventListener("resize", draw);
  if (rows) draw();

  // --- examples: a photo is embedded once; sliders cut; they enlarge ---
  document.querySelectorAll(".looks").forEach((looks) => {
    const photo = looks.querySelector(".photo, .gone");
    looks.querySelectorAll(".plain .layers, .wrong .layers").forEach((layers) => {
      layers.prepend(photo.cloneNode(true));
    });
  });
  const cut = (stage, value) => stage.style.setProperty("--cut", `${value}%`);
  document.addEventListener("input", (event) => {
    const input = event.target;
    if (input.classList.contains("slider")) cut(input.closest(".stage"), input.value);
    if (input.classList.contains("alpha")) {
      document.documentElement.style.setProperty("--alpha", input.value / 100);
      document.querySelectorAll(".alpha").forEach((other) => { other.value = input.value; });
    }
  });
  const drag = (event) => {
    const layers = event.target.closest && event.target.closest(".stage .layers");
    if (!layers || (event.type === "pointermove" && !event.buttons)) return;
    const box = layers.getBoundingClientRect();
    const value = Math.max(0, Math.min(100, 100 * (event.clientX - box.left) / box.width));
    const stage = layers.closest(".stage");
    stage.querySelector(".slider").value = value;
    cut(stage, value);
    event.preventDefault();
  };
  document.addEventListener("pointerdown", drag);
  document.addEventListener("pointermove", drag);
  document.addEventListener("dragstart", (event) => {
    if (event.target.closest(".layers")) event.preventDefault();
  });
  const dialog = document.getElementById("big");
  const inside = dialog.querySelector(".big");
  document.querySelectorAll(".enlarge").forEach((button) => {
    button.addEventListener("click", () => {
      const example = button.closest(".example");
      document.getElementById("big-title").textContent = example.querySelector("b").textContent;
      inside.replaceChildren(example.querySelector(".looks").cloneNode(true));
      dialog.showModal();
    });
  });
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
})();
