// What C++ allocates comes through malloc, and is blamed on who asked for it.
#include <cstddef>
#include <vector>

namespace shop {
struct Basket {
    std::vector<char> items;
    static Basket *fill(std::size_t bytes) {
        auto basket = new Basket;
        basket->items.resize(bytes - sizeof(Basket));
        return basket;
    }
};
Basket *volatile last;
__attribute__((noinline)) void keep(std::size_t bytes) { last = Basket::fill(bytes); }
}

extern "C" void by_new(std::size_t bytes) { shop::keep(bytes); }
