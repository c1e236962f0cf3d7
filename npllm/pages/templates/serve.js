// The page of npllm serve. Every text is put in as text, never as HTML.
(() => {
  const talk = document.getElementById("talk");
  if (!talk) return;
  const at = (id) => document.getElementById(id);
  const chats = talk.dataset.chat === "yes";
  const ALTERNATIVES = 8;
  let messages = [];  // of the conversation so far
  let running = null;  // what can stop the answer that is being written
  talk.hidden = false;

  const element = (kind, className, text) => {
    const made = document.createElement(kind);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const say = (text) => { at("state").textContent = text; };

  // A turn of the conversation, or a text; returns the element that holds the words.
  const addTurn = (who, text, written) => {
    const turn = element("div", "turn");
    const body = element("div", written ? "text written" : "text", text);
    turn.append(element("h2", "", who), body);
    at("texts").append(turn);
    if (written) {
      body.tabIndex = 0;
      body.setAttribute("role", "group");
      body.setAttribute("aria-label", "What the model wrote; the arrow keys go from token to token");
    }
    return body;
  };

  const visible = (token) => token.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "(empty)";
  const percent = (logprob) => {
    const share = 100 * Math.exp(logprob);
    return share >= 0.1 ? `${share.toFixed(1)} %` : "below 0.1 %";
  };

  const showToken = (word) => {
    document.querySelectorAll(".chosen").forEach((other) => other.classList.remove("chosen"));
    word.classList.add("chosen");
    const { token, logprob, tops } = word.score;
    const listed = tops.some((top) => top.token === token) ? tops : [...tops, { token, logprob }];
    const table = element("table");
    table.append(element("caption", "soft", `The model wrote ${visible(token)} with a probability of ${percent(logprob)}.`));
    for (const top of listed) {
      const row = element("tr", top.token === token ? "taken" : "");
      const name = element("th", "", visible(top.token));
      name.scope = "row";
      const share = element("td", "share");
      const fill = element("span", "fill");
      fill.style.width = `${Math.max(1, 100 * Math.exp(top.logprob))}%`;
      share.append(fill);
      row.append(name, element("td", "number", percent(top.logprob)), share);
      table.append(row);
    }
    at("alternatives").replaceChildren(table);
    const turn = word.closest(".turn");
    if (turn.nextElementSibling !== at("token")) turn.after(at("token"));  // where the reader looks
  };

  const addWord = (body, text, score) => {
    const p = Math.exp(score.logprob);
    const word = element("span", `word ${p < 0.1 ? "p0" : p < 0.5 ? "p1" : "p2"}`, text);
    word.score = score;
    body.append(word);
  };

  at("texts").addEventListener("pointerover", (event) => { if (event.target.score) showToken(event.target); });
  at("texts").addEventListener("click", (event) => { if (event.target.score) showToken(event.target); });
  at("texts").addEventListener("keydown", (event) => {
    const words = [...event.target.querySelectorAll(".word")];
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || !words.length) return;
    event.preventDefault();
    const here = words.findIndex((word) => word.classList.contains("chosen"));
    showToken(words[Math.min(words.length - 1, Math.max(0, here < 0 ? 0 : here + step))]);
  });

  // The tokens of a choice, each with its text and its log-probabilities.
  const scoresOf = (choice) => {
    const found = choice.logprobs;
    if (!found) return [];
    if (chats) return found.content.map((each) => ({ token: each.token, logprob: each.logprob, tops: each.top_logprobs }));
    return found.tokens.map((token, i) => ({
      token,
      logprob: found.token_logprobs[i],
      tops: Object.entries(found.top_logprobs[i]).map(([name, logprob]) => ({ token: name, logprob }))
        .sort((one, other) => other.logprob - one.logprob),
    }));
  };

  // A piece of text has whole characters; a token may be a part of one, and a stop text may cut one.
  const addPiece = (body, text, scores) => {
    const whole = scores.every((score) => !score.token.startsWith("bytes:"));
    if (whole && scores.map((score) => score.token).join("") === text) {
      for (const score of scores) addWord(body, score.token, score);
    } else if (scores.length) {
      addWord(body, text, scores[scores.length - 1]);
    } else {
      body.append(text);
    }
  };

  const readEvents = async (response, act) => {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = part.replace(/^data: /, "");
        if (data !== "[DONE]") act(JSON.parse(data));
      }
    }
  };

  const requestOf = (text) => {
    const fields = { stream: true, temperature: at("temperature").valueAsNumber, top_p: at("top_p").valueAsNumber };
    if (at("seed").value) fields.seed = at("seed").valueAsNumber;
    fields.max_tokens = at("max_tokens").valueAsNumber;
    if (!chats) return ["v1/completions", { ...fields, prompt: text, logprobs: ALTERNATIVES }];
    const asked = [...messages, { role: "user", content: text }];
    return ["v1/chat/completions", { ...fields, messages: asked, logprobs: true, top_logprobs: ALTERNATIVES }];
  };

  const answer = async (text) => {
    const [path, fields] = requestOf(text);
    const headers = { "Content-Type": "application/json" };
    if (at("key")?.value) headers.Authorization = `Bearer ${at("key").value}`;
    running = new AbortController();
    const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(fields), signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    addTurn(chats ? "You" : "Prompt", text, false);
    const body = addTurn(chats ? "Model" : "Continuation", "", true);
    at("prompt").value = chats ? "" : text;
    let failure = "", finish = "";
    try {
      await readEvents(response, (event) => {
        if (event.error) failure = event.error.message;
        for (const choice of event.choices ?? []) {
          addPiece(body, chats ? choice.delta.content : choice.text, scoresOf(choice));
          finish = choice.finish_reason ?? finish;
        }
      });
    } finally {
      if (chats) messages = [...messages, { role: "user", content: text }, { role: "assistant", content: body.textContent }];
    }
    if (failure) throw new Error(failure);
    return finish === "length" ? "The answer ends here because it has the most tokens that were asked for." : "The answer is complete.";
  };

  const ask = async () => {
    const text = at("prompt").value;
    if (running || (chats && !text.trim()) || !at("ask").reportValidity()) return;
    at("send").disabled = true;
    at("stop").disabled = false;
    say("The model writes.");
    try {
      say(await answer(text));
    } catch (error) {
      say(error.name === "AbortError" ? "Stopped." : error.message);
    } finally {
      running = null;
      at("send").disabled = false;
      at("stop").disabled = true;
    }
  };
  at("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  at("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask();
  });
  const stop = () => { if (running) running.abort(); };
  at("stop").addEventListener("click", stop);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") stop(); });
  at("clear").addEventListener("click", () => {
    stop();
    messages = [];
    talk.append(at("token"));
    at("texts").replaceChildren();
    at("alternatives").replaceChildren();
    say("");
    at("prompt").focus();
  });
})();
