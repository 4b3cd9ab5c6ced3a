"""docker-compose.yaml and Dockerfile, as far as a machine without Docker can tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
TEXT = (ROOT / "docker-compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, Any] = COMPOSE["services"]
AIRFLOW = [name for name in SERVICES if name.startswith(("airflow-", "worker"))]


def test_every_component_of_airflow_is_there() -> None:
    commands = {str(SERVICES[name].get("command")).split()[0] for name in AIRFLOW}
    assert {"api-server", "scheduler", "dag-processor", "triggerer"} <= commands
    assert "celery" in commands


def test_every_variable_has_a_default_or_is_explained() -> None:
    example = (ROOT / ".env.example").read_text()
    for name, rest in re.findall(r"\$\{(\w+)([^}]*)\}", TEXT):
        assert rest.startswith(":-") or re.search(rf"^#? ?{name}=", example, re.M), name


def test_no_secret_is_written_down() -> None:
    for line in (ROOT / ".env.example").read_text().splitlines():
        if re.match(r"(POSTGRES_PASSWORD|FERNET_KEY|\w+_SECRET)=", line):
            assert line.endswith("="), line
    secrets = re.findall(r"(?:KEY|SECRET|PASSWORD): (.*)", TEXT)
    assert secrets
    assert all(value.startswith("${") for value in secrets)


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_refers_to_exists(name: str) -> None:
    service = SERVICES[name]
    for volume in service.get("volumes", []):
        place = volume.split(":")[0]
        assert (ROOT / place).exists() if "/" in place else place in COMPOSE["volumes"]
    assert {*service.get("depends_on", {})} <= {*SERVICES}
    for config in service.get("configs", []):
        assert config["source"] in COMPOSE["configs"]
    assert "image" in service


@pytest.mark.parametrize("name", AIRFLOW)
def test_all_containers_share_keys_store_and_execution_api(name: str) -> None:
    base = COMPOSE["x-airflow"]["environment"]
    mine = SERVICES[name]["environment"]
    assert {key: mine.get(key) for key in base} == base
    assert mine["AIRFLOW__API_AUTH__JWT_SECRET"]
    assert mine["AIRFLOW__CORE__FERNET_KEY"]
    assert mine["EMBEDLINE_EMBED_QUEUE"] in TEXT.split("--queues")[1]


def test_every_airflow_option_is_one_airflow_knows() -> None:
    from airflow.configuration import conf, retrieve_configuration_description

    described = retrieve_configuration_description(include_providers=True)
    for key in COMPOSE["x-airflow"]["environment"]:
        if key.startswith("AIRFLOW__"):
            _, section, option = key.lower().split("__")
            assert option in described[section]["options"], key
    assert conf is not None


def test_the_image_is_of_the_airflow_that_is_pinned() -> None:
    pinned = re.search(
        r"^apache-airflow==(.*)$", (ROOT / "constraints.txt").read_text(), re.M
    )
    image = re.search(
        r"^FROM apache/airflow:([\d.]+)-", (ROOT / "Dockerfile").read_text(), re.M
    )
    assert pinned is not None
    assert image is not None
    assert image[1] == pinned[1]


def test_what_the_dockerfile_copies_exists() -> None:
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            for source in line.split()[2:-1]:
                assert (ROOT / source).exists(), source
