"""Read-only access to backbones by the Hugging Face Hub's protocol: `HF_ENDPOINT=<this server>/hf`.

Each format is a repository: `rcmae/<name>` is the folder `hf`, and `trainer.spec.formats.HUB_ENDINGS` names the others,
such as `rcmae/<name>-timm`; each has the version's card. A revision is anything that names a version elsewhere (`main`,
`v3`, an alias …), or its commit: 40 digits derived from the version's checksums, which always identify the same files.
"""
