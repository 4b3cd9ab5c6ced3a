FROM apache/airflow:3.3.2-python3.11

# Set it to an index of CPU builds of torch for an image without CUDA.
ARG PIP_EXTRA_INDEX_URL=""

WORKDIR /opt/embedline
COPY --chown=airflow:0 pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=airflow:0 embedding_tasks ./embedding_tasks
COPY --chown=airflow:0 sql ./sql
RUN pip install --no-cache-dir --constraint constraints.txt '.[airflow,celery,openai,words]'

WORKDIR /opt/airflow
COPY --chown=airflow:0 dags ./dags
COPY --chown=airflow:0 plugins ./plugins
COPY --chown=airflow:0 use_cases ./use_cases
ENV EMBEDLINE_PROJECT=/opt/airflow
