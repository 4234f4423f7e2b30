/* The browser of samples: filter, page, reveal. All text is written as text. */

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

class SampleBrowser {
  constructor(data) {
    this.behaviors = data.behaviors;
    this.ids = data.ids;
    this.samples = data.samples;
    this.found = data.samples;
    this.page = 0;
    this.form = document.getElementById("filters");
    this.revealAll = document.getElementById("reveal-all");
    this.keys = this.samples.map((sample) => {
      const behavior = this.behaviors[sample.behavior];
      const category = behavior.harmful ? behavior.category || "uncategorised" : "benign" + (behavior.category ? `: ${behavior.category}` : "");
      return {
        attack: attackName(sample),
        depth: String(sample.depth),
        verdict: label(sample),
        category: visible(category),
        drawn: drawnName(sample),
        search: [sample.id, behavior.id, ...behavior.messages.map((message) => message.content.slice(0, 20000))].join("\n").toLowerCase(),
      };
    });
    for (const name of ["attack", "depth", "verdict", "category", "drawn"]) this.fill(name);
    let waiting = 0;
    this.form.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.filter(), 60);
    });
    this.form.addEventListener("submit", (event) => event.preventDefault());
    this.revealAll.addEventListener("change", () => this.show());
    document.getElementById("previous").addEventListener("click", () => this.turn(-1));
    document.getElementById("next").addEventListener("click", () => this.turn(1));
    for (const id of ["filters", "result", "pages"]) document.getElementById(id).hidden = false;
    this.show();
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
    const chosen = Object.fromEntries(["attack", "depth", "verdict", "category", "drawn"].map((name) => [name, this.form.elements[name].value]));
    const search = this.form.elements.search.value.trim().toLowerCase();
    this.found = this.samples.filter((_, i) => {
      const key = this.keys[i];
      return Object.entries(chosen).every(([name, value]) => value === ALL || key[name] === value) && key.search.includes(search);
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
    document.getElementById("count").textContent =
      this.found.length === this.samples.length
        ? `${this.samples.length.toLocaleString("en")} samples`
        : `${this.found.length.toLocaleString("en")} of ${this.samples.length.toLocaleString("en")} samples`;
    document.getElementById("place").textContent = `Page ${this.page + 1} of ${pages}`;
    document.getElementById("previous").disabled = this.page === 0;
    document.getElementById("next").disabled = this.page + 1 >= pages;
    document.getElementById("list").replaceChildren(...this.found.slice(start, start + PAGE).map((sample) => this.row(sample)));
  }

  row(sample) {
    const behavior = this.behaviors[sample.behavior];
    const item = element("li", "sample");
    item.id = "sample-" + sample.id;
    const head = element("div", "head");
    const verdict = label(sample);
    head.append(element("span", "verdict " + verdict.toLowerCase().replace(" ", "-"), verdict.toLowerCase()));
    const about = element("div", "about");
    const first = element("div", "first");
    first.append(element("b", "", visible(behavior.id).slice(0, 120)));
    if (behavior.category) first.append(element("span", "", visible(behavior.category).slice(0, 80)));
    const reason = sample.verdicts.length ? visible(sample.verdicts[0].reason).slice(0, 80) : "";
    const prefix = sample.parameters.prefix ? `“${visible(String(sample.parameters.prefix)).slice(0, 80)}”` : "";
    const facts = [attackName(sample), prefix, `${sample.depth} tokens given`, drawnName(sample), reason].filter(Boolean);
    about.append(first, element("div", "facts", facts.join(" · ")));
    head.append(about);
    const button = element("button", "reveal", "Show text");
    button.type = "button";
    head.append(button);
    item.append(head);
    const toggle = () => {
      const open = item.querySelector(".body");
      if (open) open.remove();
      else item.append(this.body(sample, behavior));
      button.textContent = open ? "Show text" : "Hide text";
      button.setAttribute("aria-expanded", String(!open));
    };
    button.setAttribute("aria-expanded", "false");
    button.addEventListener("click", toggle);
    if (this.revealAll.checked) toggle();
    return item;
  }

  body(sample, behavior) {
    const body = element("div", "body");
    for (const message of behavior.messages) body.append(textBlock(message.role === "user" ? "Request" : visible(message.role).slice(0, 40), [[message.content, ""]]));
    if (sample.text === undefined) {
      body.append(element("p", "empty", "This attempt has no answer."));
    } else {
      const at = sample.verdicts.find((verdict) => verdict.counted === "continuation")?.refusal_at;
      const cut = at === null || at === undefined ? null : Math.min(at, sample.text.length);
      const parts = [[sample.prefill, "given"]];
      if (cut === null) parts.push([sample.text, ""]);
      else parts.push([sample.text.slice(0, cut), ""], ["", "turn"], [sample.text.slice(cut), ""]);
      body.append(textBlock("Answer", parts));
    }
    const facts = element("dl", "ids");
    const fact = (name, value) => facts.append(element("dt", "", name), element("dd", "", value));
    fact("Attempt", sample.id);
    for (const verdict of sample.verdicts) {
      const where = verdict.refusal_token === null ? "" : `, refusal after ${verdict.refusal_token} tokens`;
      const name = verdict.counted === "continuation" ? "Continuation alone" : "Prefill and continuation";
      fact(name, `${verdict.label.toLowerCase()} (${visible(verdict.reason)}${where}) by ${visible(verdict.judge)}`);
    }
    if (sample.finish) fact("Ended by", sample.finish === "stop" ? "the model" : "the token budget");
    const held = (name, ids) => fact(name, ids.length ? `${ids.length}: ${ids.join(" ")}` : "none");
    held("Prompt ids", this.ids[sample.prompt_ids]);
    held("Prefill ids", this.ids[sample.prefill_ids]);
    if (sample.output_ids) held("Output ids", sample.output_ids);
    body.append(facts);
    return body;
  }
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

unpacked("samples").then((data) => {
  new SampleBrowser(data);
  root.dataset.samples = "ready";
});
