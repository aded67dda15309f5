"""Fetches the users; the caller owns the list."""


# expect: leak GET / at fetchuserdata.py:user_data, 40000 B/request within 15 %, held by module app → users_list: list[, held by module app → users_list: list[
def user_data(users_list):
    # The tuple is a constant of the code, so a request leaves 5,000 pointers of 8 bytes and no new object. The list is
    # one block that realloc grows: whatever looks at live blocks or at types sees a single young block.
    for _ in range(5000):
        users_list.append(("Ada", "Lovelace", "ada@example.com"))
