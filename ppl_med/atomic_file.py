"""Writing a file so that nobody ever sees half of it."""

import errno
import os
import shutil
from pathlib import Path


def write_text(path: Path, text: str, what: str = "file") -> None:
    """Write text under a temporary name beside ``path``, then move it there in one step.

    Args:
        path: Where the file goes; an earlier file is replaced only when the new one is complete.
        text: UTF-8 is written.
        what: The file is, for messages.

    Raises:
        OSError: The file could not be written; an earlier file is untouched. Where the disk is full
            (``errno.ENOSPC``, ``errno.EDQUOT``) the message says how much space is needed.
    """
    data = text.encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise OSError(
                error.errno,
                f"no space for the {what}: it needs {len(data) / 1e6:.1f} MB, {free / 1e6:.1f} MB "
                f"are free; an earlier {what} is untouched. Free some space or choose another path",
                str(path),
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
