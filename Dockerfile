FROM python:3.13-slim AS packages
WORKDIR /app
COPY requirements.txt requirements-all.txt ./
COPY scripts/install scripts/install_packages.py scripts/
RUN scripts/install

FROM python:3.13-slim
RUN useradd --system --uid 10001 --user-group lockstep \
    && install --directory --owner=lockstep --group=lockstep /data
WORKDIR /app
COPY --from=packages /app/.venv .venv
COPY . .
# Bound to all addresses the service insists on a SECRET_KEY; without a database of its own it keeps one under /data.
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOST=0.0.0.0 \
    PORT=5001 \
    DATA_DIR=/data \
    LOG_FILE=/data/app.log
USER 10001:10001
VOLUME /data
EXPOSE 5001
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as web; web.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/health/live', timeout=4)"]
CMD ["python", "app.py"]
