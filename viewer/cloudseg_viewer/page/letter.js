// A letter in the middle of the page: what is wrong, and what to do.

import { Refusal, token } from "./api.js";

const TITLES = {
  0: "The server does not answer", 401: "This server wants a token", 403: "Not allowed", 404: "Nothing to show here",
  422: "This cannot be shown", 429: "Too many questions",
};

/** Show a failure that leaves nothing to look at. */
export function letter(error) {
  const refused = error instanceof Refusal;
  const dialog = document.createElement("dialog");
  dialog.id = "letter";
  dialog.setAttribute("aria-labelledby", "letter-title");
  dialog.innerHTML = `<h2 id="letter-title"></h2><p></p>
    <form method="dialog" hidden><label for="token">Token</label>
      <input id="token" type="password" autocomplete="off" spellcheck="false"><button type="submit">Use it</button></form>
    <button id="letter-again" type="button">Try again</button>`;
  dialog.querySelector("h2").textContent = refused ? TITLES[error.status] ?? "The server refused" : "The page failed";
  dialog.querySelector("p").textContent = refused ? error.message
    : `${error.message}. A reload may help; if not, please report this with what you did.`;
  const form = dialog.querySelector("form");
  form.hidden = !(refused && (error.status === 401 || error.status === 403));
  form.addEventListener("submit", () => {
    token.set(form.querySelector("input").value);
    location.reload();
  });
  dialog.querySelector("#letter-again").addEventListener("click", () => location.reload());
  document.body.append(dialog);
  document.documentElement.dataset.state = "letter";
  dialog.showModal();
}
