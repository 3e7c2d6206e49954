"""The service's pages as the tests read them."""

from __future__ import annotations

import re
from pathlib import Path

PAGES = Path(__file__).parents[1] / "service"
ADDRESS = "URL=http://127.0.0.1:8000\n"


def script_of(url: str, page: str, heading: str) -> str:
    """A chapter's blocks as one script against a server."""
    chapter = (PAGES / page).read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    script = "".join(re.findall(r"^```bash\n(.*?)^```$", chapter, flags=re.MULTILINE | re.DOTALL))
    assert script.startswith(ADDRESS)
    return script.replace(ADDRESS, f"URL={url}\n")
