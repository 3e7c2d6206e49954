"""All kinds of jobs."""

from __future__ import annotations

from typing import Final

from service.controller.kind import ControllerKinds
from service.kinds.embed import Embed
from service.kinds.evaluate import Evaluate
from service.kinds.importing import Import
from service.kinds.inspect import Inspect
from service.kinds.pretrain import Pretrain
from service.kinds.publish import Publish
from service.kinds.search import Search

KINDS: Final[ControllerKinds] = {
    kind.name: kind for kind in (Embed(), Evaluate(), Import(), Inspect(), Pretrain(), Publish(), Search())
}
