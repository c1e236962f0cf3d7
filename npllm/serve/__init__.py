"""`npllm serve`: a model behind the HTTP interface of OpenAI, and a page to try it."""
