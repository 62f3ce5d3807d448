/** The names that a runtime may use (CNI SPEC, section 2, "Parameters"). */

/**
 * Container ids and network names: the spec's characters, in the order it gives them. The spec has no upper limit;
 * runtimes use 64 characters, and 200 leave room for a file name made of the id.
 */
export const NAME_PATTERN = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,199}$/;
export const NAME_EXPECTED = "1 to 200 letters, digits, '_', '.' or '-', the first a letter or digit";

/**
 * What the kernel accepts as a new link's name as it stands (dev_valid_name, devinet_sysctl_dev_name_is_allowed; a
 * percent sign would make it a template), kept to printable ASCII.
 */
export const isInterfaceName = (text: string): boolean =>
  /^[!-~]{1,15}$/.test(text) && !/[/:%]/.test(text) && !['.', '..', 'all', 'default'].includes(text);
export const INTERFACE_NAME_EXPECTED =
  "1 to 15 printable characters without '/', ':', '%' or blanks, and not '.', '..', 'all' or 'default'";
