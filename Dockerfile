# clim serve in a container:
#   docker build -t clim .
#   docker run -p 127.0.0.1:7860:7860 -v "$PWD/output/demo/detic_clim:/models:ro" clim
# Options of clim serve at the end replace the last line: … clim --weights /models/other.pth --no-page
FROM python:3.11-slim

# For example an index with PyTorch's CPU wheels: --build-arg PIP_EXTRA_INDEX_URL=…
ARG PIP_EXTRA_INDEX_URL
ENV PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PATH=/opt/clim/.venv/bin:$PATH

WORKDIR /opt/clim
COPY README.md pyproject.toml train_net.py requirements.txt requirements-extras.txt requirements-detectron2.txt constraints.txt ./
COPY projects projects
COPY tools tools
COPY configs configs
RUN python tools/set_up.py --isolated --extras

RUN useradd --create-home clim
USER clim
WORKDIR /home/clim

EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=180s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/health', timeout=4)"]
ENTRYPOINT ["clim", "serve", "--host", "0.0.0.0"]
CMD ["--weights", "/models/model_final.pth"]
