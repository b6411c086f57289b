"""API keys: who may ask for what over TCP, and how much.

    configured (`server.api_keys`) ─┐
                                    ├─▶ KeyRing ─▶ Gate ─▶ a request's key, and its place in the key's limits
    made (`llmctl keys add`) ───────┘
       in keys.json, hashed

Keys of the daemon's own making are 256 random bits, so one round of SHA-256 is all that their hash needs: nobody finds
such a key by trying, as they would a password, and a slow hash would cost every request. They stand in a file of their
own instead of the store: a key that leads nowhere because a database is locked, or a lock that opens because a database
was damaged and made anew, would both be worse than anything that a table gives.
"""
