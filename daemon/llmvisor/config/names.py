import re


def check_name(name: str) -> str | None:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:@+/-]{0,255}", name) is None:
        return "allowed: letters, digits and . _ : @ + / -, beginning with a letter or digit"
    return None
