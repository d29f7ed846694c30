"""Each alarm has a runbook, each runbook has an alarm, and each runbook says what a woken person needs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

INFRA = Path(__file__).resolve().parents[2] / "infra"
RUNBOOKS = {path.name: path.read_text() for path in sorted((INFRA / "runbooks").glob("*.md"))}
TERRAFORM = {path: path.read_text() for path in (INFRA / "terraform").rglob("*.tf")}


def prometheus_alarms(manifests):
    (rules,) = [m for m in manifests if m["kind"] == "PrometheusRule"]
    return {
        rule["alert"]: rule["annotations"]["runbook_url"].rpartition("/")[2]
        for group in rules["spec"]["groups"]
        for rule in group["rules"]
    }


def cloud_alarms():
    """Return name and runbook of what Terraform makes: alarms and budgets, each named as its page."""
    found = {}
    for text in TERRAFORM.values():
        kinds = "aws_cloudwatch_metric_alarm|aws_budgets_budget|google_billing_budget|google_monitoring_alert_policy"
        for name in re.findall(rf'^resource "(?:{kinds})" "(\w+)"', text, re.MULTILINE):
            found[name] = name.replace("_", "-") + ".md"
    return found


def test_each_alarm_has_a_runbook_and_each_runbook_an_alarm(rendered):
    alarms = {**prometheus_alarms(rendered("everything")), **cloud_alarms()}
    assert len(alarms) == 11
    assert set(alarms.values()) == set(RUNBOOKS)


def test_alarms_of_the_clouds_name_their_page():
    for text in TERRAFORM.values():
        for name, body in re.findall(
            r'^resource "aws_cloudwatch_metric_alarm" "(\w+)" \{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL
        ):
            assert f"${{var.runbook_base}}/{name.replace('_', '-')}.md" in body
            assert "alarm_actions" in body
        for name in re.findall(r'^resource "\w+_budget" "(\w+)"', text, re.MULTILINE):
            assert f"/{name.replace('_', '-')}.md" in text


@pytest.mark.parametrize("name", sorted(RUNBOOKS))
def test_a_runbook_says_what_a_woken_person_needs(name, rendered):
    text = RUNBOOKS[name]
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == ["What you see", "What it means", "How to look", "What to do"]
    for section in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        assert len(section.split()) > 15
    told = re.search(r"^\*\*Alarms?:\*\* (.+?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert told
    for alarm, page in prometheus_alarms(rendered("everything")).items():
        assert (f"`{alarm}`" in told[1]) is (page == name)
    for alarm, page in cloud_alarms().items():
        assert (f"-{alarm.replace('_', '-')}`" in told[1]) is (page == name)


def test_links_lead_somewhere():
    for name, text in [*RUNBOOKS.items(), ("README.md", (INFRA / "README.md").read_text())]:
        folder = INFRA if name == "README.md" else INFRA / "runbooks"
        for target in re.findall(r"\]\(([^)#]+)\)", text):
            if not target.startswith("https://"):
                assert (folder / target).exists(), f"{name}: {target}"
