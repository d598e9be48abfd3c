"use strict";
(() => {
  // All that is shown comes from strangers: it becomes text, and never markup.
  const $ = (id) => document.getElementById(id);
  const made = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined && text !== null) element.textContent = text;
    return element;
  };
  const data = JSON.parse($("data").textContent);
  const images = data.images;
  const total = images.image_id.length;
  const coded = (column, row) => images[column].values[images[column].codes[row]];
  const words = (text) => (text === null || text === undefined || text === "" ? "–" : String(text));
  const label = (text) => words(text).replaceAll("_", " ");
  const number = (n) => n.toLocaleString("en");
  const size = (bytes) => {
    if (bytes === null) return "–";
    const units = ["B", "kB", "MB", "GB", "TB"];
    let step = 0;
    while (bytes >= 999.5 && step < units.length - 1) { bytes /= 1000; step += 1; }
    return `${step && bytes < 99.5 ? bytes.toPrecision(bytes < 9.95 ? 2 : 3) : Math.round(bytes)} ${units[step]}`;
  };
  const span = (seconds) => {
    if (seconds === null || seconds === undefined) return "–";
    if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
    if (seconds < 100) return `${Number(seconds.toPrecision(3))} s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
    return `${Number((seconds / 3600).toPrecision(3))} h`;
  };
  const moment = (at) => (at === null ? "–" : new Date(at * 1000).toISOString().replace("T", " ").slice(0, 16) + " UTC");
  for (const element of document.querySelectorAll(".only-script")) element.hidden = false;

  // What comes after this script is there once the whole page is.
  let isWhole = false;
  const whole = new Promise((done) => {
    document.addEventListener("DOMContentLoaded", () => { isWhole = true; done(); });
  });

  // Pictures: sheets of cells, in the page or beside it, each read when it is first looked at.
  const sheets = document.getElementsByClassName("thumbnails");
  const sheetUrl = (sheet) => (data.folder
    ? `${data.folder}${String(sheet).padStart(6, "0")}.webp`
    : `data:image/webp;base64,${sheets[sheet].textContent}`);
  const picture = (row, parent) => {
    const place = images.thumbnail[row];
    if (place === null || place < 0) {
      const state = coded("state", row);
      const why = place === -1 ? "cannot be shown" : coded("type", row) && images.size[row] !== null && ["archived", "unlisted"].includes(state) ? "no thumbnail here" : label(state);
      parent.append(made("span", "", why));
      return;
    }
    const cell = place % data.sheet.cells;
    const image = made("img");
    image.alt = `Image ${images.image_id[row]}`;
    image.loading = "lazy";
    image.width = data.sheet.width;
    image.height = data.sheet.height;
    image.style.objectPosition = `${-(cell % data.sheet.columns) * data.sheet.width}px ${-Math.floor(cell / data.sheet.columns) * data.sheet.height}px`;
    const sheet = Math.floor(place / data.sheet.cells);
    const load = () => { image.src = sheetUrl(sheet); };
    if (data.folder || isWhole) load();
    else whole.then(load);
    parent.append(image);
  };

  // Which images are shown: as the filters and the search say, in an order, one page of them.
  const FILTERS = ["state", "status", "type", "side", "version"];
  const values = (column) => (column === "version"
    ? { of: (row) => images.version[row] }
    : { of: (row) => coded(column, row) });
  for (const column of FILTERS) {
    const counts = new Map();
    const of = values(column).of;
    for (let row = 0; row < total; row += 1) counts.set(of(row), (counts.get(of(row)) || 0) + 1);
    const select = $(column);
    select.append(new Option("any", ""));
    const order = column === "version" ? (a, b) => a[0] - b[0] : (a, b) => b[1] - a[1];
    for (const [value, n] of [...counts].sort(order)) {
      const option = new Option(`${column === "state" ? label(value) : value === null ? (column === "type" ? "no file" : "not told") : value} (${number(n)})`, JSON.stringify(value));
      select.append(option);
    }
  }
  const ORDERS = {
    newest: (a, b) => (images.at[b] || 0) - (images.at[a] || 0),
    largest: (a, b) => (images.size[b] || 0) - (images.size[a] || 0),
    slowest: (a, b) => (images.seconds[b] || 0) - (images.seconds[a] || 0),
  };
  let haystacks = null;
  const haystack = (row) => {
    if (!haystacks) haystacks = new Array(total);
    if (haystacks[row] === undefined) {
      haystacks[row] = [
        images.image_id[row], coded("patient_id", row), coded("coverage_id", row), coded("kind", row),
        coded("problem", row), coded("became", row), coded("run_id", row), images.name && images.name[row],
      ].filter(Boolean).join("\n").toLowerCase();
    }
    return haystacks[row];
  };
  let shown = [];
  let page = 0;
  let isList = false;
  const per = () => Number($("per").value);
  const pages = () => Math.max(1, Math.ceil(shown.length / per()));

  const filter = () => {
    const tests = [];
    for (const column of FILTERS) {
      const chosen = $(column).value;
      if (!chosen) continue;
      const value = JSON.parse(chosen);
      if (column === "version") tests.push((row) => images.version[row] === value);
      else {
        const code = images[column].values.indexOf(value);
        const codes = images[column].codes;
        tests.push((row) => codes[row] === code);
      }
    }
    const who = $("patient").value.trim().toLowerCase();
    if (who) {
      const fits = images.patient_id.values.map((id) => id !== null && id.toLowerCase().includes(who));
      tests.push((row) => fits[images.patient_id.codes[row]]);
    }
    const sought = $("search").value.trim().toLowerCase();
    if (sought) tests.push((row) => haystack(row).includes(sought));
    shown = [];
    for (let row = 0; row < total; row += 1) if (tests.every((test) => test(row))) shown.push(row);
    const order = ORDERS[$("order").value];
    if (order) shown.sort(order);
    page = 0;
    draw();
  };

  const cellOf = (row) => {
    const cell = made("button", "cell");
    cell.type = "button";
    cell.dataset.row = row;
    const frame = made("span", "picture");
    picture(row, frame);
    const told = made("span", "told");
    if (images.name && images.name[row]) told.append(made("span", "name", images.name[row]));
    told.append(made("span", "id", images.image_id[row] || "unreadable"));
    told.append(made("span", "who", coded("patient_id", row) || words(coded("coverage_id", row))));
    const tags = made("span", "tags");
    tags.append(made("span", `tag ${coded("state", row)}`, label(coded("state", row))));
    const side = coded("side", row);
    if (side) tags.append(made("span", "", side.toLowerCase()));
    tags.append(made("span", "", `v${images.version[row]}`));
    told.append(tags);
    cell.append(frame, told);
    const item = made("li");
    item.append(cell);
    return item;
  };
  const lineOf = (row) => {
    const line = made("tr");
    const first = made("th");
    first.scope = "row";
    const link = made("button", "row-link", images.image_id[row] || "unreadable");
    link.type = "button";
    link.dataset.row = row;
    first.append(link);
    line.append(first);
    const cells = [
      words(coded("patient_id", row)), label(coded("state", row)), words(coded("status", row)), words(coded("type", row)),
      words(coded("side", row)), number(images.version[row]), size(images.size[row]), moment(images.at[row]),
    ];
    cells.forEach((text, at) => line.append(made("td", at === 5 || at === 6 ? "n" : "", text)));
    return line;
  };
  const draw = () => {
    const begin = page * per();
    const rows = shown.slice(begin, begin + per());
    $("sheet").replaceChildren(...(isList ? [] : rows.map(cellOf)));
    $("rows").replaceChildren(...(isList ? rows.map(lineOf) : []));
    $("sheet").hidden = isList;
    $("list").hidden = !isList;
    $("count").textContent = shown.length
      ? `${number(begin + 1)} to ${number(begin + rows.length)} of ${number(shown.length)} image${shown.length === 1 ? "" : "s"}`
      : total ? "No image is like that" : "There are no images";
    $("page").value = page + 1;
    $("page").max = pages();
    $("pages").textContent = `of ${number(pages())}`;
    $("first").disabled = $("previous").disabled = page === 0;
    $("next").disabled = $("final").disabled = page === pages() - 1;
    $("pager").hidden = shown.length <= 24;
  };
  const turn = (to) => {
    page = Math.min(Math.max(0, to), pages() - 1);
    draw();
    $("images").scrollIntoView();
  };
  let soon = 0;
  const filterSoon = () => { clearTimeout(soon); soon = setTimeout(filter, 120); };
  for (const id of [...FILTERS, "order", "per"]) $(id).addEventListener("change", filter);
  for (const id of ["search", "patient"]) $(id).addEventListener("input", filterSoon);
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  $("tools").addEventListener("reset", () => setTimeout(filter));
  $("first").addEventListener("click", () => turn(0));
  $("previous").addEventListener("click", () => turn(page - 1));
  $("next").addEventListener("click", () => turn(page + 1));
  $("final").addEventListener("click", () => turn(pages() - 1));
  $("page").addEventListener("change", () => turn(Math.trunc(Number($("page").value) || 1) - 1));
  const view = (list) => {
    isList = list;
    $("as-list").setAttribute("aria-pressed", String(list));
    $("as-sheet").setAttribute("aria-pressed", String(!list));
    draw();
  };
  $("as-list").addEventListener("click", () => view(true));
  $("as-sheet").addEventListener("click", () => view(false));
  for (const button of document.querySelectorAll("button[data-column]")) {
    button.addEventListener("click", () => {
      $("tools").reset();
      clearTimeout(soon);
      const { column, value, none } = button.dataset;
      const wanted = none ? null : column === "version" ? Number(value) : value;
      setTimeout(() => {
        $(column).value = JSON.stringify(wanted);
        filter();
        $("images").scrollIntoView();
        $("images").focus({ preventScroll: true });
      });
    });
  }

  // A card of one image, with its sidecar as it was written down.
  const unpacked = new Map();
  const blocks = document.getElementsByClassName("sidecars");
  const sidecar = async (row) => {
    await whole;
    const block = Math.floor(row / data.perBlock);
    if (!unpacked.has(block)) {
      const packed = Uint8Array.from(atob(blocks[block].textContent), (sign) => sign.charCodeAt(0));
      const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
      unpacked.set(block, new Response(stream).json());
    }
    return (await unpacked.get(block))[row % data.perBlock];
  };
  let at = 0;
  const fact = (name, value) => {
    if (value === null || value === undefined || value === "–" || value === "") return;
    $("card-facts").append(made("dt", "", name), made("dd", "", value));
  };
  const showCard = async (position) => {
    at = position;
    const row = shown[at];
    $("card-title").textContent = images.image_id[row] || "Unreadable";
    $("card-picture").replaceChildren();
    picture(row, $("card-picture"));
    $("card-facts").replaceChildren();
    if (images.name) fact("Name", images.name[row]);
    fact("Patient", coded("patient_id", row));
    fact("Coverage", coded("coverage_id", row));
    fact("State", label(coded("state", row)) + (coded("became", row) ? `: ${label(coded("became", row))}` : ""));
    fact("Problem", coded("problem", row));
    fact("Kind", coded("kind", row));
    fact("Status", coded("status", row));
    fact("Type", coded("type", row));
    fact("Side", coded("side", row));
    fact("Version", String(images.version[row]));
    fact("Size", size(images.size[row]));
    fact("Download took", span(images.seconds[row]));
    fact("Written", moment(images.at[row]));
    fact("Run", coded("run_id", row));
    fact("Directory", coded("directory", row));
    $("card-patient").hidden = coded("patient_id", row) === null;
    $("card-previous").disabled = at === 0;
    $("card-next").disabled = at === shown.length - 1;
    $("card-file").hidden = true;
    $("card-sidecar").textContent = "";
    if (!$("card").open) $("card").showModal();
    $("card-title").focus();
    const told = await sidecar(row);
    if (shown[at] !== row) return;
    $("card-sidecar").textContent = told ? JSON.stringify(told, null, 2) : "There is none that can be read.";
    if (told && told.file && data.archive !== null && coded("state", row) !== "damaged") {
      const path = [...coded("directory", row).split("/"), told.file.path];
      $("card-file").href = `${data.archive}/${path.map(encodeURIComponent).join("/")}`;
      $("card-file").hidden = false;
    }
  };
  let opener = null;
  const open = (event) => {
    const button = event.target.closest("[data-row]");
    if (!button) return;
    opener = button;
    showCard(shown.indexOf(Number(button.dataset.row)));
  };
  $("sheet").addEventListener("click", open);
  $("rows").addEventListener("click", open);
  const step = (by) => { if (shown[at + by] !== undefined) showCard(at + by); };
  $("card-previous").addEventListener("click", () => step(-1));
  $("card-next").addEventListener("click", () => step(1));
  $("card-close").addEventListener("click", () => $("card").close());
  $("card").addEventListener("click", (event) => { if (event.target === $("card")) $("card").close(); });
  $("card").addEventListener("close", () => {
    if (!shown.length) return;
    const wanted = Math.floor(at / per());
    if (wanted !== page) { page = wanted; draw(); }
    const back = document.querySelector(`#images [data-row="${shown[at]}"]`) || opener;
    if (back) back.focus();
  });
  $("card-patient").addEventListener("click", () => {
    const patient = coded("patient_id", shown[at]);
    $("card").close();
    $("tools").reset();
    setTimeout(() => { $("patient").value = patient; filter(); $("images").scrollIntoView(); });
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isTyping = event.target.closest("input, select, textarea, pre");
    if ($("card").open) {
      if (isTyping) return;
      if (event.key === "ArrowLeft") step(-1);
      else if (event.key === "ArrowRight") step(1);
      else return;
      event.preventDefault();
      return;
    }
    if (event.key === "/" && !isTyping) {
      event.preventDefault();
      $("search").focus();
      $("search").select();
      return;
    }
    const cell = event.target.closest(".cell");
    if (!cell) return;
    const cells = [...$("sheet").querySelectorAll(".cell")];
    const top = cells[0].offsetTop;
    const across = cells.findIndex((other) => other.offsetTop !== top);
    const far = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
    const to = cells[cells.indexOf(cell) + (far || 0)];
    if (!far || !to) return;
    event.preventDefault();
    to.focus();
  });

  // Charts: drawn as wide as there is room, so that their words keep their size.
  const SVG = "http://www.w3.org/2000/svg";
  const drawn = (tag, attributes, text) => {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const HEIGHT = 190;
  const LEFT = 46;
  const BOTTOM = 24;
  const TOP = 12;
  const nice = (most) => {
    const power = 10 ** Math.floor(Math.log10(most));
    return [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((n) => n * power).find((n) => n >= most);
  };
  const frame = (parent, title, most, seconds, tick) => {
    const width = parent.clientWidth;
    const svg = drawn("svg", { width, height: HEIGHT, role: "img", "aria-label": title });
    const x = (share) => LEFT + share * (width - LEFT - 8);
    const y = (value) => HEIGHT - BOTTOM - (value / most) * (HEIGHT - BOTTOM - TOP);
    for (const share of [0, 0.5, 1]) {
      const height = y(share * most);
      svg.append(drawn("line", { class: "grid", x1: LEFT, x2: width - 8, y1: height, y2: height }));
      svg.append(drawn("text", { x: LEFT - 8, y: height + 4, "text-anchor": "end" }, tick(share * most)));
    }
    for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
      svg.append(drawn("text", { x: x(share), y: HEIGHT - 6, "text-anchor": anchor }, share ? span(share * seconds) : "0"));
    }
    parent.replaceChildren(svg);
    return { svg, x, y };
  };
  // Of the steps: when each begins, images, bytes, failed, half within, 95 % within.
  const drawRate = (timeline) => {
    const { steps, step } = timeline;
    const most = nice(Math.max(...steps.map((one) => one[1] + one[3])) / step);
    const seconds = steps.length * step;
    const title = `Images a second over ${span(seconds)}, ${number(Number((Math.max(...steps.map((one) => one[1])) / step).toPrecision(3)))} at most`;
    const { svg, x, y } = frame($("rate"), title, most, seconds, (value) => String(Number(value.toPrecision(3))));
    const room = (x(1) - x(0)) / steps.length;
    const wide = Math.min(Math.max(room - (room > 4 ? 1 : 0), 0.5), 48);
    steps.forEach((one, at) => {
      const left = x(at / steps.length) + (room - wide) / 2;
      const good = y(one[1] / step);
      svg.append(drawn("rect", { class: "area", x: left, width: wide, y: good, height: y(0) - good }));
      if (one[3]) {
        const bad = y((one[1] + one[3]) / step);
        svg.append(drawn("rect", { class: "failed", x: left, width: wide, y: bad, height: good - bad }));
      }
    });
    $("rate-bytes").textContent = `${size(steps.reduce((sum, one) => sum + one[2], 0))} in all`;
    $("rate-failed").hidden = !steps.some((one) => one[3]);
  };
  const drawLatency = (timeline) => {
    const { steps, step } = timeline;
    const known = steps.filter((one) => one[4] !== null);
    if (!known.length) { $("latency").replaceChildren(made("p", "muted", "No download succeeded.")); return; }
    const most = nice(Math.max(...known.map((one) => one[5])));
    const { svg, x, y } = frame($("latency"), `Time of a download: half within ${span(known.at(-1)[4])} and 95 percent within ${span(known.at(-1)[5])} at the end`, most, steps.length * step, span);
    for (const [column, kind] of [[5, "most"], [4, "half"]]) {
      const line = [];
      let begin = true;
      steps.forEach((one, at) => {
        if (one[column] === null) { begin = true; return; }
        const point = `${x((at + 0.5) / steps.length).toFixed(1)} ${y(one[column]).toFixed(1)}`;
        // A lone one is a short stroke.
        line.push(begin ? `M${point}h.01` : `L${point}`);
        begin = false;
      });
      svg.append(drawn("path", { class: kind, d: line.join("") }));
    }
  };
  const drawTime = () => {
    const timeline = data.timelines[$("time-run").selectedIndex];
    drawRate(timeline);
    drawLatency(timeline);
    $("time-rows").replaceChildren(...timeline.steps.filter((one) => one[1] || one[3]).map((one) => {
      const line = made("tr");
      const cells = [span(one[0]), number(one[1]), size(one[2]), number(one[3]), span(one[4]), span(one[5])];
      cells.forEach((text, index) => {
        const cell = made(index ? "td" : "th", "n", text);
        if (!index) cell.scope = "row";
        line.append(cell);
      });
      return line;
    }));
  };
  $("charts").hidden = $("time-table").hidden = $("time-run-label").hidden = !data.timelines.length;
  $("no-time").hidden = data.timelines.length > 0;
  if (data.timelines.length) {
    for (const timeline of data.timelines) $("time-run").append(new Option(timeline.run));
    $("time-run").addEventListener("change", drawTime);
    new ResizeObserver(drawTime).observe($("rate"));
  }

  let withFile = 0;
  let withPicture = 0;
  for (let row = 0; row < total; row += 1) {
    if (images.size[row] !== null && ["archived", "unlisted"].includes(coded("state", row))) withFile += 1;
    if (images.thumbnail[row] !== null) withPicture += 1;
  }
  $("left-out").hidden = withPicture >= withFile;
  $("left-out").textContent = `Thumbnails of ${number(withPicture)} of ${number(withFile)} files are in this page: bulkfetch report --folder makes all of them.`;
  filter();
})();
