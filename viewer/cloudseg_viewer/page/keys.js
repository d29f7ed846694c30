// Keys of the page; they rest while something is typed.

const KEYS = [
  ["j", "next", "fly to the next soma"], ["k", "previous", "fly to the one before"],
  ["a", "accept", "accept it, and on"], ["r", "reject", "reject it, and on"], ["u", "undo", "take back the last verdict"],
  ["f", "fly", "fly to the chosen soma again"], ["/", null, "to the filter"], ["c", "clear", "clear all filters"],
  ["?", null, "this list"],
];
const ALSO = [["↑ ↓ PgUp PgDn Home End", "move in the table"], ["Enter", "fly there, select its neuron"], ["Tab", "from part to part"]];

/** Bind the keys; `actions` has a function for each name, and the elements of the list. */
export function addKeys(actions) {
  for (const [key, text] of [...KEYS.map(([key, , text]) => [key, text]), ...ALSO]) {
    const term = document.createElement("dt"), description = document.createElement("dd");
    term.append(Object.assign(document.createElement("kbd"), { textContent: key }));
    description.textContent = text;
    actions.list.append(term, description);
  }
  actions.button.addEventListener("click", () => actions.help.showModal());
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest?.("input, select, textarea, dialog[open]");
    if (typing) {
      if (event.key === "Escape" && event.target === actions.filter) event.target.blur();
      return;
    }
    if (event.key === "?") actions.help.showModal();
    else if (event.key === "/") actions.filter.focus();
    else {
      const found = KEYS.find(([key, name]) => name && key === event.key);
      if (!found) return;
      actions[found[1]]();
    }
    event.preventDefault();
  });
}
