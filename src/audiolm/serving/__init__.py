"""The model over HTTP: the API, what guards and batches it, and the page."""
