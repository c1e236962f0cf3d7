(() => {
  const part = document.getElementById("part");
  const connection = document.getElementById("connection");
  const source = new EventSource("events");
  source.addEventListener("part", (event) => { part.innerHTML = JSON.parse(event.data); });
  source.addEventListener("open", () => { connection.textContent = "Connected: the page follows the run."; });
  source.addEventListener("error", () => { connection.textContent = "The server does not answer; trying again."; });
})();
