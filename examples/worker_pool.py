"""A pool does many small jobs on all cores: results in order, errors in their turn."""

import math

import shmipc


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


class Dictionary:
    """What each worker makes once, and every job gets as its first argument."""

    def __init__(self, language: str) -> None:
        self.words = {"english": ("one", "two", "three"), "german": ("eins", "zwei", "drei")}[language]

    def word(self, number: int) -> str:
        return self.words[number - 1]


def main() -> None:
    with shmipc.System() as system:
        pool = system.pool()  # one worker per core
        primes = [number for number, prime in enumerate(pool.map(is_prime, range(2000), chunksize=50)) if prime]
        print(f"{len(primes)} primes below 2000, the last is {primes[-1]}")
        assert len(primes) == 303

        future = pool.submit(math.factorial, 20)
        assert future.result(timeout=10.0) == math.factorial(20)

        translators = system.pool(2, Dictionary, "german")
        words = list(translators.map(Dictionary.word, [3, 2, 1]))
        print(" ".join(words))
        assert words == ["drei", "zwei", "eins"]

        results = pool.map(math.sqrt, [4, 1, -1, 9])
        assert [next(results), next(results)] == [2.0, 1.0]
        try:
            next(results)
        except ValueError as error:
            print("the third job failed:", error)


if __name__ == "__main__":
    main()
