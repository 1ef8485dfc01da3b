"""One CKKS key for all clients: whoever holds it opens everybody.

TenSEAL's usual recipe for federated averaging: one context with one secret key is made, every
client receives it, and the server adds ciphertexts under the public half. The server learns
nothing by itself. One client that works with it is enough: this script is that client.

Run it: python docs/attacks/shared_key.py
"""

import numpy as np
import tenseal as ts

CLIENTS, LENGTH, SCALE = 5, 4096, 2.0**40


def recipe() -> ts.Context:
    """Parameters as in TenSEAL's own tutorials."""
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40, 60])
    context.global_scale = SCALE
    return context


def main() -> bool:
    """Whether the attack succeeds."""
    print(f"{CLIENTS} clients hold one TenSEAL context with its secret key; the server, the public")
    print("half. Each client encrypts its update, in quantised levels, and uploads it.")
    clients = recipe()
    server = ts.context_from(clients.serialize(save_secret_key=False))
    rng = np.random.default_rng(1)
    updates = rng.integers(-(2**15), 2**15, (CLIENTS, LENGTH))
    uploads = [ts.ckks_vector(clients, row.astype(float).tolist()).serialize() for row in updates]

    print("The server adds the uploads, and the clients decrypt the sum, as intended.")
    received = [ts.ckks_vector_from(server, upload) for upload in uploads]
    total = received[0]
    for vector in received[1:]:
        total = total.add(vector)
    opened = np.rint(total.decrypt(clients.secret_key()))
    print(f"  {int((opened == updates.sum(axis=0)).sum())} of {LENGTH} sums are right")

    print("Client 4 now gives the server its key. The server opens client 0's upload alone:")
    victim = np.rint(received[0].decrypt(clients.secret_key()))
    right = int((victim == updates[0]).sum())
    print(f"  {right} of {LENGTH} levels are exactly those of client 0")
    return right == LENGTH


if __name__ == "__main__":
    main()
