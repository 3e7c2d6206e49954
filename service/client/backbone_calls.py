"""The client's methods for backbones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from service.backbones.comparison_schemas import ComparisonView
from service.backbones.retention_schemas import RetentionView
from service.backbones.schemas import (
    MAIN,
    BackboneDetailView,
    BackboneView,
    VersionDeletionView,
    VersionSummaryView,
    VersionType,
    VersionView,
    Visibility,
)
from service.backbones.signature_schemas import LARGEST_SUMS, SIGNATURE_FILE, SigningKeyView, VersionSignatureView
from service.backbones.use_schemas import OwnerSpaceView, VersionUserView
from service.client.approval_calls import ApprovalCalls
from service.client.download import Fetcher, Progress
from service.client.listing import ALL, PullFormat
from service.client.signatures import (
    SIGNATURE_BYTES,
    SIGNED_SUMS,
    KnownKeys,
    PublicKey,
    SignatureError,
    keys_in,
    must_list_what_is_signed,
    signer_of,
)
from service.client.transport import label_texts, without_none
from service.http.schemas import Page
from trainer.protocol.names import BACKBONE_SUMS as SUMS
from trainer.spec.export import BackboneFormat


class BackboneCalls(ApprovalCalls):
    """The methods of `Client` for backbones."""

    def backbones(
        self,
        *,
        name_contains: str | None = None,
        job: str | None = None,
        dataset: str | None = None,
        type: VersionType | None = None,  # noqa: A002 - as in the API
        method: str | None = None,
        network: str | None = None,
        form: BackboneFormat | None = None,
        alias: str | None = None,
        owner: str | None = None,
        search: str | None = None,
        labels: Mapping[str, str] | None = None,
        filters: Sequence[str] = (),
        sort: str | None = None,
        page_size: int = 100,
    ) -> Iterator[BackboneView]:
        """Registered backbones that have a version matching all filters, each with its matching versions.

        ``type`` is `backbone` or `classifier`; ``job`` registered or trained it; ``dataset`` is a fingerprint or a
        URI; ``owner`` owns the backbone or the version. ``search`` has words that are all in the name, origin, dataset,
        description or labels; ``filters`` are conditions on results such as `eval/linear_top1 >= 0.5`. ``sort`` is
        `updated_at`, `downloads`, `last_used_on`, `bytes` or an evaluation result such as `eval/linear_top1`, with a
        leading `-` for descending order; by name by default.
        """
        query = {"name_contains": name_contains, "job": job, "dataset": dataset, "method": method, "owner": owner}
        query |= {"type": type, "network": network, "format": form, "alias": alias, "search": search, "sort": sort}
        several = {"label": label_texts(labels), "filter": list(filters), "limit": page_size}
        return self._pages(Page[BackboneView], "/v1/backbones", {**query, **several})

    def backbone(self, name: str) -> BackboneDetailView:
        """One backbone with its aliases and the details of each version."""
        return self._get(BackboneDetailView, f"/v1/backbones/{name}")

    def version(self, name: str, version: int | str | None = None) -> VersionView:
        """One version with its files. By default the champion, else the latest.

        ``version`` is a number such as 3 or "v3", an alias, "latest", "main" or a commit.
        """
        return self._get(VersionView, f"/v1/backbones/{name}/versions/{MAIN if version is None else version}")

    def pull(
        self,
        name: str,
        out: Path,
        *,
        version: int | str | None = None,
        form: PullFormat = "hf",
        force: bool = False,
        progress: Progress | None = None,
        verify: bool = False,
        key: Path | None = None,
        tell: Callable[[str], None] = lambda _: None,
    ) -> VersionView:
        """Download one format of a version into the new folder ``out``, each file checked against its sha256.

        ``version`` is as for `version`. The format ``all`` is everything, with a folder for each format. ``progress``
        is called with the bytes received and the total. ``out`` appears whole or not at all; with ``force`` it replaces
        a folder that was pulled before. The download resumes where a connection broke or the service restarted, and
        when it is started again after its process was killed.

        With ``verify``, nothing is downloaded unless a trusted key has signed the version's checksums: one in the file
        ``key``, by default one of those that the service listed when this user first verified something of it. ``tell``
        is called with a sentence when keys are trusted for the first time. `SignatureError` says what is wrong.

        Raises `FileExistsError` if ``out`` exists. Raises `DownloadError` if a file does not match its checksum, the
        version lacks the format or is deleted meanwhile, names a file that cannot be written safely, or another process
        pulls into ``out``, and `UnacceptableAnswer` for more bytes than the version lists, a compressed answer, or a
        redirect that must not be followed. Raises `OSError` if the disk has no room.
        """
        view = self.version(name, version)
        fetcher = Fetcher(self._connection, self._patience_s, progress)
        beside = self._verified(fetcher, view, form, key, tell) if verify else {}
        fetcher.folder(view, form, out, force, beside)
        return view

    def patch_backbone(
        self,
        name: str,
        *,
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
        owner: str | None = None,
        visibility: Visibility | None = None,
        readers: Sequence[str] | None = None,
    ) -> BackboneDetailView:
        """Change a backbone; None changes nothing. ``labels`` replace all of its own, ``readers`` all of its readers.

        ``visibility`` is `all`, `owners`, or `readers`: the owners and ``readers``, who are owners of tokens. A change
        of the owner is not retried: afterwards the caller may not be allowed to make it again.
        """
        body: dict[str, object] = {"description": description, "owner": owner, "visibility": visibility}
        body |= {
            "labels": None if labels is None else dict(labels),
            "readers": None if readers is None else list(readers),
        }
        path = f"/v1/backbones/{name}"
        return self._request(BackboneDetailView, "PATCH", path, json=without_none(body), retried=owner is None)

    def patch_version(
        self, name: str, version: int, *, description: str | None = None, labels: Mapping[str, str] | None = None
    ) -> VersionSummaryView:
        """Change a version's description or labels; None changes nothing. ``labels`` replace all of its own."""
        body = {"description": description, "labels": None if labels is None else dict(labels)}
        path = f"/v1/backbones/{name}/versions/{version}"
        return self._request(VersionSummaryView, "PATCH", path, json=without_none(body), retried=True)

    def signing_keys(self) -> list[SigningKeyView]:
        """The public keys that the service has signed backbones with, the newest first."""
        return self._get(Page[SigningKeyView], "/v1/signing-keys").items

    def signature(self, name: str, version: int | str | None = None) -> VersionSignatureView:
        """The signature over a version's checksums. `ApiError` 404 `signature_not_found` if it is not signed."""
        path = f"/v1/backbones/{name}/versions/{MAIN if version is None else version}/signature"
        return self._get(VersionSignatureView, path)

    def _verified(
        self, fetcher: Fetcher, view: VersionView, form: PullFormat, key: Path | None, tell: Callable[[str], None]
    ) -> dict[str, bytes]:
        """What lies beside the files of one format once they are known to be signed: the checksums and the signature.

        Raises `SignatureError`.
        """
        name, listed = f"{view.name}:{view.version}", {file.path: file for file in view.files}
        if view.signature is None or not {SUMS, SIGNATURE_FILE} <= set(listed):
            raise SignatureError(f"{name} is not signed, so nothing is pulled; without --verify it can be")
        trusted = keys_in(key) if key else self._known_keys(view.signature.key_id, tell)
        if view.signature.key_id not in {each.id for each in trusted}:
            raise SignatureError(_other_key(name, view.signature.key_id, trusted, None if key else self.url))
        sums = fetcher.bytes_of(listed[SUMS], LARGEST_SUMS)
        signature = fetcher.bytes_of(listed[SIGNATURE_FILE], SIGNATURE_BYTES)
        signer_of(sums, signature, trusted, name)
        must_list_what_is_signed(view, form, sums, signature)
        return {} if form == ALL else {SIGNED_SUMS: sums, SIGNATURE_FILE: signature}

    def _known_keys(self, needed: str, tell: Callable[[str], None]) -> list[PublicKey]:
        """The keys of this service that this client trusts: those that it lists, where it knows none yet."""
        known = KnownKeys()
        found = known.of(self.url)
        if found:
            return found
        found = [PublicKey.of(each.public_key, f"{self.url}/v1/signing-keys") for each in self.signing_keys()]
        if needed not in {each.id for each in found}:
            raise SignatureError(f"{self.url} does not list the key {needed}, which it says a version is signed with")
        known.remember(self.url, found)
        ids = ", ".join(each.id for each in found)
        tell(
            f"first key of {self.url}: {ids}. It is trusted from now on ({known.file}): compare it with the operator's"
        )
        return found

    def compare_backbones(self, first: str, second: str) -> ComparisonView:
        """Two versions side by side, each named as `name`, `name:3` or `name@champion`."""
        return self._get(ComparisonView, "/v1/backbone-comparison", {"of": first, "with": second})

    def version_users(self, name: str, version: int | str | None = None) -> list[VersionUserView]:
        """Who has used a version, whoever did last first. Only those who may delete it can ask."""
        path = f"/v1/backbones/{name}/versions/{MAIN if version is None else version}/users"
        return self._get(Page[VersionUserView], path).items

    def backbone_space(self) -> list[OwnerSpaceView]:
        """What the caller's backbones take, or those of each owner if the caller may change everybody's."""
        return self._get(Page[OwnerSpaceView], "/v1/backbone-space").items

    def retention(self, name: str) -> RetentionView:
        """The retention rule of a backbone, and what it does with each version."""
        return self._get(RetentionView, f"/v1/backbones/{name}/retention")

    def set_retention(
        self, name: str, *, expire_unused_days: int | None, keep_newest: int | None = None, preview: bool = False
    ) -> RetentionView:
        """Set the rule by which versions of a backbone are deleted, whatever rule it had before.

        A version goes once it is older than ``expire_unused_days`` and nobody has used it for as long, unless it
        is one of the ``keep_newest`` (1 by default), has an alias, is `main`, or its job has not ended. With
        ``preview``, nothing is set.
        """
        body = without_none({"expire_unused_days": expire_unused_days, "keep_newest": keep_newest})
        query = {"preview": True} if preview else None
        path = f"/v1/backbones/{name}/retention"
        return self._request(RetentionView, "PUT", path, params=query, json=body, retried=True)

    def remove_retention(self, name: str) -> RetentionView:
        """Remove the retention rule of a backbone: nothing is deleted by itself any more. Not retried."""
        return self._request(RetentionView, "DELETE", f"/v1/backbones/{name}/retention")

    def version_deletion_preview(self, name: str, version: int) -> VersionDeletionView:
        """What deleting a version would remove; nothing is deleted."""
        path = f"/v1/backbones/{name}/versions/{version}"
        return self._request(VersionDeletionView, "DELETE", path, params={"preview": True}, retried=True)

    def delete_version(self, name: str, version: int) -> VersionDeletionView:
        """Delete a version with its files. Not retried. `ApiError` 409 names the aliases that still point at it."""
        return self._request(VersionDeletionView, "DELETE", f"/v1/backbones/{name}/versions/{version}")


def _other_key(name: str, found: str, trusted: Sequence[PublicKey], url: str | None) -> str:
    """What to do where a version is signed by a key that is not trusted. ``url``: the service, for remembered keys."""
    ids = ", ".join(key.id for key in trusted)
    if url is None:
        return f"{name} is signed by the key {found}, and {trusted[0].origin} holds {ids}; nothing is pulled"
    file = KnownKeys().file
    return (
        f"{name} is signed by the key {found}, and this client trusts {ids} of {url}; nothing is pulled. If the "
        f"operator says that {found} is a new key of theirs, remove {url} from {file}, and pull again"
    )
