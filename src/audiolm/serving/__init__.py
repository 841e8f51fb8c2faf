"""The model over HTTP: the API, its limits and batching, and the web page."""
