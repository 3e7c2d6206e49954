"""What the client asks about backbones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from service.backbones.schemas import MAIN, BackboneDetailView, BackboneView, VersionDeletionView, VersionView
from service.client.download import Fetcher, Form, Progress
from service.client.transport import Transport
from service.http.schemas import Page
from trainer.spec.export import BackboneFormat


class BackboneCalls(Transport):
    """The part of `Client` that is about backbones."""

    def backbones(
        self,
        *,
        name_contains: str | None = None,
        job: str | None = None,
        dataset: str | None = None,
        method: str | None = None,
        network: str | None = None,
        form: BackboneFormat | None = None,
        alias: str | None = None,
        sort: str | None = None,
        page_size: int = 100,
    ) -> Iterator[BackboneView]:
        """Registered backbones, those with a version that fits all filters, and of each the versions that fit.

        ``job`` registered or trained it; ``dataset`` is a fingerprint or a URI. ``sort`` is `updated_at` or a result of
        evaluation such as `eval/linear_top1`, with `-` before it the greatest first; by name without it.
        """
        filters = {"name_contains": name_contains, "job": job, "dataset": dataset, "method": method}
        filters |= {"network": network, "format": form, "alias": alias, "sort": sort}
        return self._pages(Page[BackboneView], "/v1/backbones", {**filters, "limit": page_size})

    def backbone(self, name: str) -> BackboneDetailView:
        """One backbone with its aliases and what is known of each version."""
        return self._get(BackboneDetailView, f"/v1/backbones/{name}")

    def version(self, name: str, version: int | str | None = None) -> VersionView:
        """One version with its files: a number, an alias, `latest`; without one the champion, else the latest."""
        return self._get(VersionView, f"/v1/backbones/{name}/versions/{MAIN if version is None else version}")

    def pull(
        self,
        name: str,
        out: Path,
        *,
        version: int | str | None = None,
        form: Form = "hf",
        force: bool = False,
        progress: Progress | None = None,
    ) -> VersionView:
        """Download one format of a version into the new folder ``out``, each file checked against its sha256.

        ``version`` as for `version`; ``all`` is everything, with a folder for each format. ``progress`` is told the
        bytes that have come and the bytes there are. ``out`` appears whole or not at all; with ``force`` it takes the
        place of a folder that was pulled before. Goes on where a connection broke or the service restarted, and when
        it is called again after its process was killed.

        Raises `FileExistsError` where ``out`` exists, `DownloadError` for a file that does not match its checksum, a
        format that is not there, a version that is deleted meanwhile, or where another process pulls into ``out``.
        """
        found = self.version(name, version)
        Fetcher(self._http, self.url, self._patience_s, progress).folder(found, form, out, force)
        return found

    def set_alias(self, name: str, alias: str, version: int) -> BackboneDetailView:
        """Let an alias stand for a version, whatever it stood for before."""
        path = f"/v1/backbones/{name}/aliases/{alias}"
        return self._ask(BackboneDetailView, "PUT", path, json={"version": version}, retried=True)

    def delete_alias(self, name: str, alias: str) -> BackboneDetailView:
        """Remove an alias; the version that it stood for stays. Not repeated, as `delete`."""
        return self._ask(BackboneDetailView, "DELETE", f"/v1/backbones/{name}/aliases/{alias}")

    def version_deletion_preview(self, name: str, version: int) -> VersionDeletionView:
        """What would go with a version; nothing is deleted."""
        path = f"/v1/backbones/{name}/versions/{version}"
        return self._ask(VersionDeletionView, "DELETE", path, params={"preview": True}, retried=True)

    def delete_version(self, name: str, version: int) -> VersionDeletionView:
        """Delete a version with its files. `ApiError` 409 names an alias that stands for it. Not repeated."""
        return self._ask(VersionDeletionView, "DELETE", f"/v1/backbones/{name}/versions/{version}")
