"""The pages of webhooks."""

from __future__ import annotations

import re

import pytest
from test_pages_rest import controls, csrf, page
from webhook_receiver import add_webhook

from service.db.tables import WebhookDelivery, now

PUBLIC = "https://93.184.216.34/hook"


def add_delivery(database, webhook_id: str, **fields: object) -> str:
    with database.session() as session:
        row = WebhookDelivery(**{"webhook_id": webhook_id, "type": "alias.moved", "data": {"name": "digits"}} | fields)
        session.add(row)
        session.flush()
        return row.id


def test_one_sees_ones_own_webhooks_and_an_admin_everybodys(browsers, database):
    mine, others = add_webhook(database, owner="alice"), add_webhook(database, owner="carol")
    for browser, seen in ((browsers.alice, {mine}), (browsers.operator, set()), (browsers.admin, {mine, others})):
        assert set(re.findall(r'<tr id="(hook-\w+)"', page(browser, "/webhooks"))) == seen
        assert 'href="/webhooks"' in page(browser, "/")
    assert set(re.findall(r'<tr id="(hook-\w+)"', page(browsers.admin, "/webhooks", owner="carol"))) == {others}
    page(browsers.alice, f"/webhooks/{others}", status=404)
    page(browsers.viewer, "/webhooks", status=403)
    assert 'href="/webhooks"' not in page(browsers.viewer, "/")


def test_a_webhooks_page_shows_its_deliveries_and_what_can_be_done(browsers, database):
    webhook_id = add_webhook(database, owner="alice", events=["alias.moved"], description="the <b>CI</b>")
    trouble = "the receiver answered 500 Internal Server Error"
    failed = add_delivery(
        database, webhook_id, attempts=10, response_code=500, response="<script>x</script>", message=trouble,
        ended_at=now(), last_attempt_at=now(), duration_s=0.25,
    )  # fmt: skip
    waiting = add_delivery(database, webhook_id, next_attempt_at=now())
    raw = browsers.alice.get(f"/webhooks/{webhook_id}").text
    assert "<script>x" not in raw
    assert "<b>CI" not in raw
    text = page(browsers.alice, f"/webhooks/{webhook_id}")
    for shown in (trouble, "<script>x</script>", "500", "took 0.25 s", "Send now", "Send again", "data-soon"):
        assert shown in text
    base = f"/v1/webhooks/{webhook_id}"
    assert controls(text) >= {
        f"POST {base}/test", f"PATCH {base}", f"DELETE {base}", f"POST {base}/rotate",
        f"POST {base}/deliveries/{failed}/retry", f"POST {base}/deliveries/{waiting}/retry",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        (
            {"enabled": False, "disabled_because": "all deliveries have failed for 5 days"},
            "The service has disabled it",
        ),
        ({"failing_since": now(), "last_message": "refused"}, "Deliveries have failed since"),
    ],
)
def test_a_webhook_in_trouble_says_so(browsers, database, fields, shown):
    webhook_id = add_webhook(database, **fields)
    assert shown in page(browsers.alice, f"/webhooks/{webhook_id}")
    assert (fields.get("disabled_because") or fields["last_message"]) in page(browsers.alice, "/webhooks")


def test_the_secret_is_in_no_page(browsers):
    made = browsers.alice.post("/v1/webhooks", json={"url": PUBLIC}, headers=csrf(browsers.alice)).json()
    for path in ("/webhooks", f"/webhooks/{made['id']}"):
        assert "whsec_" not in page(browsers.alice, path)
