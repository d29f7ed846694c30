// The server: questions with the token, and its refusals as letters to the reader.

const TOKEN = "cloudseg-token";

/** A failure in words; `status` is that of HTTP, 0 where nothing answered. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Kept until the tab is closed, and never in a link. */
export const token = {
  get: () => sessionStorage.getItem(TOKEN) ?? "",
  set: (value) => sessionStorage.setItem(TOKEN, value.trim()),
};

/** Ask for a path of this server; the answer, if it is one. */
export async function ask(path, { method = "GET", body, keepalive = false, signal, headers: more } = {}) {
  const headers = { ...more, ...(token.get() ? { Authorization: `Bearer ${token.get()}` } : {}) };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), keepalive, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, `No answer from ${location.origin}: is \`cloudseg serve\` still running there? What is on the page stays; the next try asks again.`);
  }
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error.message;
  } catch { /* the status says what there is to say */ }
  throw new Refusal(response.status, message);
}

export const askJson = async (path, options) => (await ask(path, options)).json();
