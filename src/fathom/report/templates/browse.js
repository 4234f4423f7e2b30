/* What the report and the comparison share: a list to filter and to page through, and how an answer is shown.
   All text is written as text. */

const PAGE = 25;
const FIRST_SHOWN = 4000; // characters of a text shown at once: a megabyte on a line must not stall the page
const MORE_SHOWN = 40000;
const ALL = "";

function drawnName(sample) {
  return sample.temperature === 0 ? "greedy" : `T = ${sample.temperature}`;
}

function attackName(sample) {
  const on = sample.subject === "base" ? " on the base" : "";
  return visible(sample.attack.replaceAll("_", " ")) + on;
}

/* The verdict on what the model wrote itself comes first; an unjudged sample says so. */
function label(sample) {
  return sample.verdicts.length ? sample.verdicts[0].label : sample.text === undefined ? "NOT RUN" : "NOT JUDGED";
}

function categoryName(behavior) {
  const category = behavior.harmful ? behavior.category || "uncategorised" : "benign" + (behavior.category ? `: ${behavior.category}` : "");
  return visible(category);
}

/* Entries with what they can be found by. A page says how to key an entry and how to show it. */
class Browser {
  constructor(entries, filters) {
    this.entries = entries;
    this.filters = filters;
    this.page = 0;
    this.form = document.getElementById("filters");
    this.revealAll = document.getElementById("reveal-all");
    this.list = document.getElementById("list");
    this.keys = entries.map((entry) => this.key(entry));
    for (const name of filters) this.fill(name);
    let waiting = 0;
    this.form.addEventListener("input", () => {
      clearTimeout(waiting);
      this.list.setAttribute("aria-busy", "true"); // what is shown is not yet what was asked for
      waiting = setTimeout(() => this.filter(), 60);
    });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.revealAll.addEventListener("change", () => this.show());
    document.getElementById("previous").addEventListener("click", () => this.turn(-1));
    document.getElementById("next").addEventListener("click", () => this.turn(1));
    for (const id of ["filters", "result", "pages"]) document.getElementById(id).hidden = false;
    this.filter();
  }

  fill(name) {
    const counts = new Map();
    for (const key of this.keys) counts.set(key[name], (counts.get(key[name]) || 0) + 1);
    const names = [...counts.keys()];
    names.sort(name === "depth" ? (a, b) => a - b : (a, b) => a.localeCompare(b));
    const select = this.form.elements[name];
    const option = (value, text) => {
      const made = element("option", "", text);
      made.value = value;
      select.append(made);
    };
    option(ALL, "all");
    for (const value of names) option(value, `${value.length > 60 ? value.slice(0, 60) + "…" : value} (${counts.get(value).toLocaleString("en")})`);
    if (names.length < 2) select.parentElement.hidden = true;
  }

  filter() {
    const chosen = this.filters.map((name) => [name, this.form.elements[name].value]).filter(([, value]) => value !== ALL);
    const search = this.form.elements.search.value.trim().toLowerCase();
    this.found = this.entries.filter((_, i) => {
      const key = this.keys[i];
      return chosen.every(([name, value]) => key[name] === value) && key.search.includes(search);
    });
    this.page = 0;
    this.show();
  }

  turn(by) {
    this.page += by;
    this.show();
    document.getElementById("samples-section").scrollIntoView();
  }

  show() {
    const pages = Math.max(1, Math.ceil(this.found.length / PAGE));
    const start = this.page * PAGE;
    const all = this.entries.length.toLocaleString("en");
    document.getElementById("count").textContent =
      this.found.length === this.entries.length ? `${all} in all` : `${this.found.length.toLocaleString("en")} of ${all}`;
    document.getElementById("place").textContent = `Page ${this.page + 1} of ${pages}`;
    document.getElementById("previous").disabled = this.page === 0;
    document.getElementById("next").disabled = this.page + 1 >= pages;
    this.list.replaceChildren(...this.found.slice(start, start + PAGE).map((entry) => this.row(entry)));
    this.list.removeAttribute("aria-busy");
  }

  /* One line of the list, whose text is made only when it is asked for. */
  item(id, marks, first, facts, body) {
    const item = element("li", "sample");
    item.id = id;
    const head = element("div", "head");
    const about = element("div", "about");
    about.append(first, element("div", "facts", facts.filter(Boolean).join(" · ")));
    const button = element("button", "reveal", "Show text");
    button.type = "button";
    head.append(marks, about, button);
    item.append(head);
    const toggle = () => {
      const open = item.querySelector(".body");
      if (open) open.remove();
      else item.append(body());
      button.textContent = open ? "Show text" : "Hide text";
      button.setAttribute("aria-expanded", String(!open));
    };
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", toggle);
    if (this.revealAll.checked) toggle();
    return item;
  }
}

function verdictMark(sample) {
  const verdict = label(sample);
  return element("span", "verdict " + verdict.toLowerCase().replace(" ", "-"), verdict.toLowerCase());
}

function named(behavior) {
  const first = element("div", "first");
  first.append(element("b", "", visible(behavior.id).slice(0, 120)));
  if (behavior.category) first.append(element("span", "", visible(behavior.category).slice(0, 80)));
  return first;
}

/* Attack, depth and draw, as facts of one line. */
function settingOf(sample) {
  const shown = (value) => (typeof value === "string" ? `“${visible(value).slice(0, 80)}”` : visible(String(value)));
  const parameters = Object.entries(sample.parameters).map(([name, value]) => `${visible(name).slice(0, 40)} ${shown(value)}`);
  return [attackName(sample), ...parameters.slice(0, 4), `${sample.depth} token${sample.depth === 1 ? "" : "s"} given`, drawnName(sample), sample.sample ? `draw ${sample.sample + 1}` : ""];
}

function requestBlocks(behavior) {
  return behavior.messages.map((message) => textBlock(message.role === "user" ? "Request" : visible(message.role).slice(0, 40), [[message.content, ""]]));
}

function answerBlock(title, sample) {
  if (sample.text === undefined) return element("p", "empty", "This attempt has no answer.");
  const at = sample.verdicts.find((verdict) => verdict.counted === "continuation")?.refusal_at;
  const cut = at === null || at === undefined ? null : Math.min(at, sample.text.length);
  const parts = [[sample.prefill, "given"]];
  if (cut === null) parts.push([sample.text, ""]);
  else parts.push([sample.text.slice(0, cut), ""], ["", "turn"], [sample.text.slice(cut), ""]);
  return textBlock(title, parts);
}

/* Everything that identifies an answer: attempt, verdicts, and the exact ids. */
function idsList(sample, ids) {
  const facts = element("dl", "ids");
  const fact = (name, value) => facts.append(element("dt", "", name), element("dd", "", value));
  fact("Attempt", sample.id);
  for (const [name, value] of Object.entries(sample.found)) fact(visible(name).slice(0, 60), visible(String(value)).slice(0, 2000));
  for (const verdict of sample.verdicts) {
    const where = verdict.refusal_token === null ? "" : `, refusal after ${verdict.refusal_token} tokens`;
    const name = verdict.counted === "continuation" ? "Continuation alone" : "Prefill and continuation";
    fact(name, `${verdict.label.toLowerCase()} (${visible(verdict.reason)}${where}) by ${visible(verdict.judge)}`);
  }
  if (sample.finish) fact("Ended by", sample.finish === "stop" ? "the model" : "the token budget");
  const held = (name, found) => fact(name, found.length ? `${found.length}: ${found.join(" ")}` : "none");
  held("Prompt ids", ids[sample.prompt_ids]);
  held("Prefill ids", ids[sample.prefill_ids]);
  if (sample.output_ids) held("Output ids", sample.output_ids);
  return facts;
}

/* Parts of a text under one title: what was given is set apart, and the place where a refusal begins is marked. */
function textBlock(title, parts) {
  const block = element("div", "text-block");
  block.append(element("div", "title", title));
  const text = element("div", "text");
  text.dir = "auto";
  for (const [content, kind] of parts) {
    if (kind === "turn") text.append(element("span", "turn", "refusal begins"));
    else if (content) text.append(longText(content, kind));
  }
  if (!parts.some(([content]) => content)) text.append(element("span", "faint", "empty"));
  block.append(text);
  return block;
}

function longText(content, kind) {
  const span = element("span", kind);
  let shown = 0;
  const more = element("button", "more");
  more.type = "button";
  const grow = (by) => {
    let end = Math.min(content.length, shown + by);
    const last = content.charCodeAt(end - 1);
    if (end < content.length && last >= 0xd800 && last < 0xdc00) end += 1; // never between two halves of a character
    more.before(document.createTextNode(visible(content.slice(shown, end))));
    shown = end;
    more.hidden = shown >= content.length;
    more.textContent = `Show more (${(content.length - shown).toLocaleString("en")} characters left)`;
  };
  more.addEventListener("click", () => grow(MORE_SHOWN));
  span.append(more);
  grow(FIRST_SHOWN);
  return span;
}
