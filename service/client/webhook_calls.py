"""The client's methods for webhooks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from service.client.transport import Transport, without_none
from service.events.types import EventType
from service.http.schemas import Page
from service.webhooks.schemas import DeliveryView, NewWebhookView, WebhookView


class WebhookCalls(Transport):
    """The methods of `Client` for webhooks, by which other services hear of what happens to backbones."""

    def webhooks(self, *, owner: str | None = None) -> Iterator[WebhookView]:
        """Webhooks without their secrets, newest first: your own, or everybody's for admins."""
        return self._pages(Page[WebhookView], "/v1/webhooks", {"owner": owner})

    def webhook(self, webhook_id: str) -> WebhookView:
        """One webhook, with how its last delivery went."""
        return self._get(WebhookView, f"/v1/webhooks/{webhook_id}")

    def create_webhook(
        self,
        url: str,
        *,
        events: Sequence[EventType | str] | None = None,
        backbones: Sequence[str] | None = None,
        description: str = "",
        enabled: bool = True,
        owner: str | None = None,
    ) -> NewWebhookView:
        """Create a webhook, by default for all events of all backbones. Its secret is returned only this once."""
        body: dict[str, Any] = {"url": url, "description": description, "enabled": enabled, "owner": owner}
        body |= {"events": _listed(events), "backbones": _listed(backbones)}
        # Not retried: a lost response had the secret in it, and everything would be delivered twice.
        return self._request(NewWebhookView, "POST", "/v1/webhooks", json=without_none(body))

    def change_webhook(self, webhook_id: str, **changes: Any) -> WebhookView:
        """Change `url`, `events`, `backbones`, `description` or `enabled`; None for `events` or `backbones` is all."""
        return self._request(WebhookView, "PATCH", f"/v1/webhooks/{webhook_id}", json=changes, retried=True)

    def rotate_webhook(self, webhook_id: str) -> NewWebhookView:
        """Give a webhook a new secret; for a day, deliveries are signed with the old one too. Not retried."""
        return self._request(NewWebhookView, "POST", f"/v1/webhooks/{webhook_id}/rotate")

    def delete_webhook(self, webhook_id: str) -> WebhookView:
        """Delete a webhook with the log of its deliveries."""
        return self._request(WebhookView, "DELETE", f"/v1/webhooks/{webhook_id}")

    def test_webhook(self, webhook_id: str, *, timeout_s: float = 60.0, poll_s: float = 0.5) -> DeliveryView:
        """Send a test, and wait for how it went: `state` is `delivered` or `failed`.

        Raises `TimeoutError` if it has not been sent after ``timeout_s`` seconds, as where no controller runs.
        """
        sent = self._request(DeliveryView, "POST", f"/v1/webhooks/{webhook_id}/test")
        end = time.monotonic() + timeout_s
        while sent.state == "waiting":
            if time.monotonic() > end:
                raise TimeoutError(f"the test {sent.id} has not been sent after {timeout_s:g} s")
            time.sleep(poll_s)
            sent = self.webhook_delivery(webhook_id, sent.id)
        return sent

    def webhook_deliveries(self, webhook_id: str, *, page_size: int = 100) -> Iterator[DeliveryView]:
        """What was sent to a webhook, or waits for it, newest first; pages are requested as they are needed."""
        return self._pages(Page[DeliveryView], f"/v1/webhooks/{webhook_id}/deliveries", {"limit": page_size})

    def webhook_delivery(self, webhook_id: str, delivery_id: str) -> DeliveryView:
        """One delivery."""
        return self._get(DeliveryView, f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}")

    def retry_delivery(self, webhook_id: str, delivery_id: str) -> DeliveryView:
        """Send a delivery now, with the same id. Not retried."""
        path = f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/retry"
        return self._request(DeliveryView, "POST", path)


def _listed(names: Sequence[str] | None) -> list[str] | None:
    return None if names is None else [str(name) for name in names]
