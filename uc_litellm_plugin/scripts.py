"""The SQL scripts that ship with the package: numbered migrations, then `functions.sql`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from .errors import DatabaseError
from .settings import shipped

FUNCTIONS = 0  # The version under which schema_version keeps functions.sql.

_FILE_NAME = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


@dataclass(frozen=True)
class Migration:
    """One file of `sql/`."""

    version: int
    name: str
    file: str
    sql: str

    @property
    def checksum(self) -> str:
        """Sha256 in hex of the text; line ends do not count."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def shipped_migrations() -> list[Migration]:
    """The files of `sql/` in the order in which they are applied: by number, then `functions.sql`."""
    directory = shipped("sql")
    try:
        texts = {path.name: path.read_text("utf-8") for path in sorted(directory.glob("*.sql"))}
    except OSError as error:
        raise DatabaseError(f"{directory}: {error.strerror}; the installation is damaged, install it again") from error
    numbered = [
        Migration(int(match[1]), match[2], name, sql)
        for name, sql in texts.items()
        if (match := _FILE_NAME.fullmatch(name))
    ]
    if [migration.version for migration in numbered] != list(range(1, len(numbered) + 1)) or not numbered:
        raise DatabaseError(
            f"{directory} does not hold each of 0001, 0002, … once, but {', '.join(texts) or 'no file'}; "
            "the installation is damaged, install it again"
        )
    functions = texts.get("functions.sql")
    return numbered if functions is None else [*numbered, Migration(FUNCTIONS, "functions", "functions.sql", functions)]
