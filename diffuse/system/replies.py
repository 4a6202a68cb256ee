"""What a process answers another one: a result or an error, and the error of a connection that has ended."""

import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from diffuse.system.errors import Terminated, UserError
from diffuse.system.ranks import rank_here
from diffuse.system.signals import raise_pending

Reply = tuple[BaseException | None, Any]


class PeerLost(UserError):
    """The connection to another process has ended: that process failed, or was killed, and says why itself."""


def attempt(function: Callable[[Any], Any], item: Any) -> Reply:
    """function(item), or its error: anything but PeerLost, after which nobody can be answered."""
    try:
        result = function(item)
        raise_pending()
        return None, result
    except PeerLost:
        raise
    except BaseException as error:  # a signal too: the answer is sent in any case, or the others would wait for it
        return error, None


def sendable(reply: Reply) -> Reply:
    """The reply, with its error in a form that another process can read."""
    error, value = reply
    return error and portable(error), value


def portable(error: BaseException) -> BaseException:
    """The error in a form that another process can read: a mistake of ours as the text of its traceback."""
    if isinstance(error, UserError | KeyboardInterrupt | Terminated | OSError | MemoryError | torch.OutOfMemoryError):
        with suppress(Exception):
            pickle.loads(pickle.dumps(error))
            return error
    return RuntimeError(f"rank {rank_here()}:\n{''.join(traceback.format_exception(error))}")


def raise_first(replies: Sequence[Reply]) -> None:
    """Raise the first error among the replies, which are in the order of ranks."""
    for rank, (error, _) in enumerate(replies):
        if isinstance(error, UserError) and rank:
            raise type(error)(f"rank {rank}: {error}")
        if error is not None:
            raise error


@contextmanager
def connection() -> Iterator[None]:
    """Raise PeerLost where the connection to another process has ended."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo and NCCL have several types, all of them RuntimeErrors
        why = (str(error).strip().splitlines() or [""])[0][:120]
        raise PeerLost(
            f"the connection to another process of this command has ended: it failed, or was killed ({why})"
        ) from error
