# The book in a container: JupyterLab by default, or any of make's targets.
FROM python:3.12-slim
RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /book
COPY . .
RUN make .venv/installed
EXPOSE 8888
CMD ["make", "lab", "LAB=--ip=0.0.0.0 --allow-root --no-browser"]
