// Asks for /status.json every two seconds while the tab is visible, and more slowly after failures. Where a token is
// needed, it asks only with one. The token lives in sessionStorage: it ends with the tab.

const EVERY_MS = 2000;
const SLOWEST_MS = 30000;
const PATIENCE_MS = 10000;
const KEY = "waltier-token";

export class Poll {
  // told: answered(status), unanswered(why, retryMs), locked(whetherATokenWasRefused)
  constructor(told) {
    this.told = told;
    this.failures = 0;
    this.timer = null;
    this.asking = false;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.pause() : this.now()));
  }

  get token() {
    return sessionStorage.getItem(KEY);
  }

  set token(value) {
    if (value === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, value);
    this.now();
  }

  now() {
    this.pause();
    if (!this.asking) this.ask();
  }

  pause() {
    clearTimeout(this.timer);
    this.timer = null;
  }

  async ask() {
    this.asking = true;
    const token = this.token;
    const wait = await this.once(token);
    this.asking = false;
    // A token that was entered meanwhile is used at once. null: the next request waits for a token.
    if (token !== this.token) this.ask();
    else if (wait !== null && !document.hidden) this.timer = setTimeout(() => this.ask(), wait);
  }

  async once(token) {
    let status;
    try {
      const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
      const answer = await fetch("/status.json", { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
      if (answer.status === 401) {
        if (token === this.token) this.told.locked(token !== null);
        return null;
      }
      if (!answer.ok) throw new Error(`it answered ${answer.status}`);
      status = await answer.json();
    } catch (error) {
      const wait = Math.min(SLOWEST_MS, EVERY_MS * 2 ** this.failures);
      this.failures += 1;
      this.told.unanswered(error.name === "Error" ? error.message : "", wait);
      return wait;
    }
    this.failures = 0;
    // Runs apart from the polling: a mistake in drawing is reported, and does not end it.
    queueMicrotask(() => this.told.answered(status));
    return EVERY_MS;
  }
}
