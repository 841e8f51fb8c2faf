// The server: what it says of itself, and asking it for things.

/** As /v1/models says; until it has, what is usual. */
export const server = { sample_rate: 16000, max_sound_seconds: 120 };

let key = sessionStorage.getItem("audiolm-key") ?? "";

/** Show this key from now on, until the window is closed. */
export function useKey(text) {
  key = text;
  sessionStorage.setItem("audiolm-key", key);
}

/** fetch, where whatever goes wrong is an Error in the server's own words. Paths are below the page's, wherever a proxy puts it. */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(`.${path}`, { ...options, headers: key ? { Authorization: `Bearer ${key}` } : {} });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => null);
  throw Object.assign(new Error(problem?.detail ?? `The server answered ${response.status}.`), { status: response.status });
}

/** A form of recordings. */
export function fileForm(files) {
  const data = new FormData();
  for (const [name, file] of Object.entries(files)) data.append(name, file, file.name ?? `${name}.wav`);
  return data;
}
