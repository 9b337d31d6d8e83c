"""The process in which a PDF is read: its text on stdout, a line and the exit code 3 where that cannot be done.

Started by path, within `bounded.py`'s limits: it knows pypdf and the standard library and nothing of the package.
"""

import logging
import sys

FAILED = 3


def main(path: str, most: int) -> None:
    from pypdf import PdfReader

    logging.disable(logging.CRITICAL)  # pypdf remarks on every oddity
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            fail("it is encrypted")
        length = 0
        for page in reader.pages:
            text = page.extract_text() + "\n\n"
            length += len(text)
            if length > most:
                fail(f"it holds more than {most >> 20} million characters")
            sys.stdout.write(text)
        sys.stdout.flush()
    except MemoryError:
        fail("it needs too much memory")
    except RecursionError:
        fail("it refers to itself without end")
    except Exception as error:  # whatever a PDF does wrong is one line
        fail(" ".join(f"{type(error).__name__}: {error}".split()))


def fail(reason: str) -> None:
    sys.stderr.write(reason + "\n")
    sys.exit(FAILED)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
