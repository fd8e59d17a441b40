(() => {
  const BATCH = 60;
  const items = window.SEGMILL_ITEMS || [];
  const spaces = new Map(JSON.parse(document.getElementById("spaces").textContent).map((s) => [s.name, s.classes]));
  const get = (id) => document.getElementById(id);
  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
  const classOf = (item, id) => (spaces.get(item.space) || {})[id] || [`id ${id}`, "#000000", false];

  // --- what can be chosen ---
  const found = new Map();
  const splits = new Map();
  let confident = false;
  for (const item of items) {
    splits.set(item.split, (splits.get(item.split) || 0) + 1);
    confident = confident || item.mean !== null;
    for (const [id] of item.classes) {
      const name = classOf(item, id)[0];
      found.set(name, (found.get(name) || 0) + 1);
    }
  }
  const fill = (select, counts) => {
    for (const [name, count] of [...counts].sort()) {
      if (name) select.append(new Option(`${name} (${count})`, name));
    }
  };
  fill(get("class"), found);
  fill(get("split"), splits);
  get("sure-box").hidden = !confident;
  if (!confident) {
    document.querySelectorAll("option[value=confidence], option[value=low], option[value=high]").forEach((o) => o.remove());
  }

  // --- pictures ---
  function picture(item, eager) {
    const box = make("span", "picture");
    const layer = (name, source, alt) => {
      const image = make("img", name);
      image.loading = eager ? "eager" : "lazy";
      image.decoding = "async";
      image.alt = alt;
      image.src = source;
      image.addEventListener("error", () => image.remove());
      box.append(image);
    };
    if (item.image) layer("photo", item.image, item.id);
    if (item.mask) layer("mask", item.mask, item.image ? "" : `mask of ${item.id}`);
    if (item.confidence) layer("sure", item.confidence, `confidence of ${item.id}`);
    if (!item.image || item.error) {
      const missing = make("span", item.mask || item.image ? "missing quiet" : "missing");
      missing.append(make("span", "", item.image ? "mask missing" : "image missing"));
      missing.title = item.error || "";
      box.append(missing);
    }
    return box;
  }

  function card(item, place) {
    const button = make("button", "item");
    button.type = "button";
    button.dataset.place = place;
    const caption = make("span", "caption");
    const name = make("b", "", item.id);
    name.title = item.id;
    const row = make("span", "row");
    row.append(make("span", "", [item.dataset, item.split].filter(Boolean).join(" · ")));
    row.append(make("span", "num", item.mean === null ? "" : percent(item.mean)));
    const shares = make("span", "shares");
    for (const [id, share] of item.classes) {
      const [, colour, real] = classOf(item, id);
      if (!real) continue;
      const part = make("i");
      part.style.setProperty("--c", colour);
      part.style.setProperty("--w", `${100 * share}%`);
      shares.append(part);
    }
    caption.append(name, row, shares);
    button.append(picture(item), caption);
    return button;
  }

  // --- the list ---
  const cards = get("cards");
  let chosen = items;
  let drawn = 0;

  function more() {
    const part = document.createDocumentFragment();
    const end = Math.min(drawn + BATCH, chosen.length);
    for (; drawn < end; drawn += 1) part.append(card(chosen[drawn], drawn));
    cards.append(part);
  }

  function classShare(item, name) {
    for (const [id, share, sure] of item.classes) {
      if (classOf(item, id)[0] === name) return [share, sure];
    }
    return null;
  }

  function filter() {
    const text = get("find").value.trim().toLowerCase();
    const name = get("class").value;
    const split = get("split").value;
    const sure = get("sure").value / 100;
    const order = get("sort").value;
    get("sure-value").textContent = `${get("sure").value} %`;
    chosen = items.filter((item) => {
      if (text && !item.id.toLowerCase().includes(text)) return false;
      if (split && item.split !== split) return false;
      const held = name ? classShare(item, name) : null;
      if (name && !held) return false;
      if (!sure) return true;
      // With a class chosen, it is that class which has to be sure.
      const mean = held ? held[1] : item.mean;
      return mean !== null && mean >= sure;
    });
    if (order === "class" && name) {
      chosen.sort((a, b) => classShare(b, name)[0] - classShare(a, name)[0]);
    } else if (order === "low" || order === "high") {
      const sign = order === "low" ? 1 : -1;
      const value = (item) => (item.mean === null ? 2 * sign : item.mean);
      chosen.sort((a, b) => sign * (value(a) - value(b)));
    }
    drawn = 0;
    cards.replaceChildren();
    more();
    const bad = chosen.filter((item) => item.error).length;
    get("status").textContent =
      `${chosen.length.toLocaleString("en")} shown` + (bad ? `, ${bad.toLocaleString("en")} of them with something missing` : "");
    watch.unobserve(get("more"));
    watch.observe(get("more"));
  }

  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((e) => e.isIntersecting) || drawn >= chosen.length) return;
    more();
    // Ask anew: on a tall window the end may still be in view.
    watch.unobserve(get("more"));
    watch.observe(get("more"));
  }, { rootMargin: "800px" });

  // --- view and opacity, in the tools and in the light box alike ---
  const root = document.documentElement;
  const same = (selector, apply) => {
    const inputs = document.querySelectorAll(selector);
    inputs.forEach((input) => input.addEventListener("input", () => {
      inputs.forEach((other) => { other.value = input.value; });
      apply(input.value);
    }));
    apply(inputs[0].value);
  };
  same(".view", (value) => { root.dataset.view = value; });
  same(".opacity", (value) => root.style.setProperty("--opacity", value / 100));

  // --- light box ---
  const dialog = get("box");
  let place = 0;

  function show(at) {
    place = (at + chosen.length) % chosen.length;
    const item = chosen[place];
    get("box-title").textContent = item.id;
    const large = picture(item, true);
    large.style.aspectRatio = `${item.width} / ${item.height}`;
    get("box-stack").replaceChildren(large);
    const facts = [item.dataset, item.split, `${item.width} × ${item.height}`, item.kind, item.space];
    if (item.mean !== null) facts.push(`mean confidence ${percent(item.mean)}`);
    get("box-meta").textContent = facts.filter(Boolean).join(" · ") + (item.error ? ` – ${item.error}` : "");
    get("box-classes").replaceChildren(...item.classes.map(([id, share, sure]) => {
      const [name, colour] = classOf(item, id);
      const line = make("li");
      const chip = make("i", "chip");
      chip.style.setProperty("--c", colour);
      line.append(chip, make("span", "name", name), make("span", "num", percent(share)));
      line.append(make("span", "num sure", sure < 0 ? "" : percent(sure)));
      return line;
    }));
    if (!dialog.open) dialog.showModal();
  }

  cards.addEventListener("click", (event) => {
    const button = event.target.closest(".item");
    if (button) show(Number(button.dataset.place));
  });
  get("previous").addEventListener("click", () => show(place - 1));
  get("next").addEventListener("click", () => show(place + 1));
  get("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select")) return;
    if (event.key === "ArrowLeft") show(place - 1);
    if (event.key === "ArrowRight") show(place + 1);
  });

  get("tools").addEventListener("submit", (event) => event.preventDefault());
  get("find").addEventListener("input", filter);
  for (const id of ["class", "split", "sort"]) get(id).addEventListener("change", filter);
  get("sure").addEventListener("input", filter);
  filter();
})();
