"""The code by which the files of a job that computes features are downloaded and read."""

from __future__ import annotations

from service.jobs.schemas import JobView
from trainer.protocol.names import EMBEDDINGS


def reading_code(job: JobView, server: str) -> str:
    """A command line that downloads them, and Python that reads them with pyarrow and pandas."""
    folder = f"{job.id}/{EMBEDDINGS}"
    lines = [
        f"# export RCMAE_URL={server}; rcmae jobs files {job.id} --prefix {EMBEDDINGS}/ --download {job.id}",
        "import json",
        "from glob import glob",
        "",
        "import numpy as np",
        "import pyarrow.dataset as ds",
        "",
        f'table = ds.dataset(sorted(glob("{folder}/*.parquet"))).to_table()  # a row for each image, in their order',
        'about = json.loads(table.schema.metadata[b"rcmae"])  # network, dataset, pooling: what has to be the same',
        'features = np.stack(table["features"].to_numpy())  # (images, width)',
        'rows = table.select(["key", "label"]).to_pandas()  # of each image, its name and its class',
    ]
    if job.spec["patch_tokens"]:
        lines += [
            'patches = np.stack(table["patch_tokens"].to_numpy()).reshape(len(table), *about["patch_tokens"])',
        ]
    return "\n".join(lines) + "\n"
