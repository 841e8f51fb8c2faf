# The page and the HTTP API on a processor: docker build -t audiolm . && docker run -p 8000:8000 -e AUDIOLM_API_KEY=secret audiolm
# Its steps are those of the README, by hand: an environment in .venv, the package, `audiolm serve`.
FROM python:3.11-slim

RUN useradd --create-home audiolm && install -d -o audiolm -g audiolm /home/audiolm/app
USER audiolm
WORKDIR /home/audiolm/app
COPY --chown=audiolm . .
RUN python3 -m venv .venv
RUN .venv/bin/pip install --no-cache-dir '.[serve]'
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz')"]
# Inside a container everybody is outside: say who may come in (AUDIOLM_API_KEY), or publish the port to this machine alone.
CMD [".venv/bin/audiolm", "serve", "--host", "0.0.0.0"]
