"use strict";
// Without this script the page works by its forms. With it, keys pick, and only what changes is replaced.
const main = () => document.querySelector("main");
const alertLine = document.getElementById("alert");
let waiting = false;
let typing = 0;

async function send(form, button) {
  const part = form.dataset.swap;
  if (waiting && !part) return;
  if (!part) waiting = true;
  main().classList.toggle("busy", !part);
  const mine = ++typing;
  try {
    const body = new URLSearchParams(new FormData(form));
    if (button && button.name) body.append(button.name, button.value);
    const action = button?.getAttribute("formaction") || form.action;
    const keepalive = String(body).length < 60000; // who closes the page right after a key has picked; browsers allow 64 KiB
    const answer = await fetch(action, { method: "POST", body, keepalive, credentials: "same-origin", headers: { "X-Part": "1" } });
    if (!(answer.headers.get("content-type") || "").startsWith("text/html")) {
      throw new Error((await answer.json()).error.message);
    }
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    alertLine.textContent = "";
    if (part) {
      if (mine === typing) document.querySelector(part).replaceChildren(...page.querySelector(part).childNodes);
      return;
    }
    const status = document.getElementById("status");
    main().replaceWith(page.querySelector("main"));
    status.textContent = main().dataset.status || "";
    const focus = main().querySelector("[autofocus]");
    if (focus) focus.focus({ preventScroll: true });
    if (!focus || !("stay" in focus.dataset)) scrollTo(0, 0);
  } catch (error) {
    const failure = button?.dataset.failure || form.dataset.failure || "Not saved";
    alertLine.textContent = `${failure}: ${error.message}. Try again.`;
  } finally {
    if (!part) waiting = false;
    main().classList.remove("busy");
  }
}

document.addEventListener("submit", (event) => {
  if (!("swap" in event.target.dataset)) return;
  event.preventDefault();
  send(event.target, event.submitter);
});

let timer = 0;
document.addEventListener("input", (event) => {
  if (event.target.id !== "words") return;
  clearTimeout(timer);
  timer = setTimeout(() => send(event.target.form), 150);
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const field = event.target.closest("input, textarea, select");
  if (field) {
    if (event.key === "Escape") field.blur();
    if (event.key === "Enter" && field.id === "query" && !event.shiftKey) {
      event.preventDefault();
      field.form.requestSubmit();
    }
    return;
  }
  if (event.repeat) return;
  const button = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  const box = document.querySelector(`[data-focus="${CSS.escape(event.key)}"]`);
  if (button && !button.disabled) {
    event.preventDefault();
    button.click();
  } else if (box) {
    event.preventDefault();
    box.focus();
  }
});
