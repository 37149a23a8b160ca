"use strict";
// Asks for the page again while somebody looks at it, and exchanges the parts that have changed. Without this
// script the page shows the same, as of when it was opened.
{
  const PERIOD = 2000;
  const news = document.getElementById("news");
  const button = document.createElement("button");
  const state = document.createElement("span");
  button.type = "button";
  document.getElementById("updates").append(state, button);
  let paused = false;
  let timer;
  let told = document.getElementById("main").dataset.news;

  const show = (text, kind) => {
    state.textContent = text;
    state.className = kind;
    button.textContent = paused ? "Resume" : "Pause";
    button.setAttribute("aria-label", paused ? "Resume updates" : "Pause updates");
  };

  const parts = (root) => [...root.querySelectorAll("[data-live]")];

  // What a reader has opened stays open, and what has the focus keeps it.
  const exchange = (part, next) => {
    if (part.outerHTML === next.outerHTML) return;
    const open = [...part.querySelectorAll("details[open]")].map((details) => details.id);
    const focus = part.contains(document.activeElement) ? document.activeElement.id : "";
    const at = [...part.querySelectorAll(".scroll")].map((scroll) => scroll.scrollLeft);
    const fresh = document.adoptNode(next);
    part.replaceWith(fresh);
    for (const id of open) fresh.querySelector(`details[id="${id}"]`)?.setAttribute("open", "");
    fresh.querySelectorAll(".scroll").forEach((scroll, number) => { scroll.scrollLeft = at[number] ?? 0; });
    if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
  };

  const update = async () => {
    const answer = await fetch(location.href, { cache: "no-cache", headers: { accept: "text/html" } });
    if (!(answer.headers.get("content-type") ?? "").startsWith("text/html")) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const [now, next] = [parts(document), parts(page)];
    if (now.map((part) => part.id).join() === next.map((part) => part.id).join()) {
      now.forEach((part, number) => exchange(part, next[number]));
    } else {
      document.getElementById("main").replaceChildren(...page.getElementById("main").childNodes);
    }
    document.title = page.title;
    const words = page.getElementById("main").dataset.news;
    if (words !== told) news.textContent = words;
    told = words;
  };

  const turn = async () => {
    clearTimeout(timer);
    if (paused) return show("paused", "paused");
    if (!document.hidden) {
      try {
        await update();
        show("live", "live");
      } catch {
        show("no answer", "lost");
      }
    }
    clearTimeout(timer);
    timer = setTimeout(turn, PERIOD);
  };

  button.addEventListener("click", () => {
    paused = !paused;
    turn();
  });
  document.addEventListener("visibilitychange", turn);
  show("live", "live");
  timer = setTimeout(turn, PERIOD);
}
